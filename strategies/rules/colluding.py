"""Omniscient colluding attackers, in simulation only: their updates are replaced just before the rule combines.

Each attacking client's update becomes attack(honest updates of this combination, number of attackers, the rule). No
client could do this in a real federation; it is the worst case that robustness is measured against, as in González et
al., "ByzFL: Research Framework for Robust Federated Learning", arXiv:2505.24802.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fedhet.engine.aggregator import Demanding, Shortage
from fedhet.numerics.tree import FlatTree, Schema, flatten
from fedhet.protocols import Rule, Space, View
from fedhet.types import ClientId, Tree, Update


class Attack(Protocol):
    """The set of attacking clients, and the vector that they send."""

    def __contains__(self, client: object) -> bool: ...

    def vector(self, honest: Tensor, count: int, defence: Callable[[Tensor], Tensor]) -> Tensor:
        """The vector (D,) every attacker sends; `honest` is (h, D), `defence` maps such a vector to the answer."""
        ...


@dataclass(frozen=True)
class Colluding:
    """A rule whose attackers know it and all honest updates.

    In a combination without attackers, or without honest clients, it is the rule itself. It copies the honest updates.
    """

    rule: Rule
    attack: Attack

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"each", "coordinates"}) | self.rule.needs

    @property
    def gives(self) -> frozenset[str]:
        return getattr(self.rule, "gives", frozenset())

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        found = self.rule.lacks(clients) if isinstance(self.rule, Demanding) else None
        return replace(found, key=f"rule.{found.key}") if found else None

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        honest = [u for u in updates if u.job.client not in self.attack]
        count = len(updates) - len(honest)
        if not count or not honest:
            return self.rule(updates, space, view)
        schema = Schema.of(flatten(honest[0].delta))

        def answer(vector: Tensor) -> Tree:
            evil = FlatTree(schema, vector)
            sent = [replace(u, delta=evil, scale=1.0) if u.job.client in self.attack else u for u in updates]
            return self.rule(sent, space, view)

        rows = torch.stack([_flat(u.delta) * u.scale for u in honest])
        return answer(self.attack.vector(rows, count, lambda vector: _flat(answer(vector))))


def _flat(tree: Tree) -> Tensor:
    flat = flatten(tree)
    if not isinstance(flat, FlatTree):
        raise ValueError("a colluding attack needs updates whose leaves share one dtype")
    return flat.flat
