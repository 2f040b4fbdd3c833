"""Pre-aggregation: mixings applied to the updates before a rule, which then sees rows M x in place of x.

Every M is computed from inner products alone.

rule(M_k ... M_1 x): a linear rule sees M K M' and its coefficients come back as M'c; a coordinate rule sees blocks of
M x. The idea is nearest-neighbour mixing's: Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
Heterogeneity", arXiv:2302.01772.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from fedhet.bases.rule import AbstractRule, UpdateMatrix
from fedhet.engine.aggregator import Additive, Demanding, Shortage
from fedhet.numerics.tree import squared_norm
from fedhet.protocols import View
from fedhet.types import ClientId, Tree, Update


class Mixing(Protocol):
    """A linear map of the rows, by `UpdateMatrix.mix` and `UpdateMatrix.times`.

    A mixing that compares updates declares `needs` = {"distances"}.
    """

    def __call__(self, rows: UpdateMatrix, view: View) -> UpdateMatrix: ...


@runtime_checkable
class Scaling(Protocol):
    """A mixing that multiplies each update by a factor of its own norm."""

    def factor(self, length: float) -> float: ...


@runtime_checkable
class Merging(Protocol):
    """A mixing that merges several updates into one row."""

    def merged(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        """The client of each output row, given one update of each of these clients; -1: of several clients."""
        ...


@dataclass(frozen=True)
class Chain(AbstractRule):
    """A rule after mixings, which are applied in the order given. Chains may be nested.

    before: mixings, or a mapping of names to mixings, where None leaves one out. Raises ValueError for a rule that
    does not work on rows.
    """

    before: Iterable[Mixing] | Mapping[str, Mixing | None]
    rule: AbstractRule
    names: tuple[str, ...] = field(init=False, default=(), compare=False)
    """The mixings' names, or their positions if they have none."""

    def __post_init__(self) -> None:
        given = self.before if isinstance(self.before, Mapping) else dict(enumerate(self.before))
        present = {str(name): mixing for name, mixing in given.items() if mixing is not None}
        object.__setattr__(self, "before", tuple(present.values()))
        object.__setattr__(self, "names", tuple(present))
        if not isinstance(self.rule, AbstractRule):
            raise ValueError(
                f"rule={type(self.rule).__name__} cannot stand behind mixtures; it must be an AbstractRule"
            )

    @property
    def needs(self) -> frozenset[str]:
        needs: frozenset[str] = self.rule.needs  # type: ignore[attr-defined]
        for mixing in self.mixings:
            needs |= {"each"} | getattr(mixing, "needs", frozenset())
        return needs

    @property
    def gives(self) -> frozenset[str]:
        """What the rule gives if there is no mixing before it."""
        return frozenset() if self.mixings else getattr(self.rule, "gives", frozenset())

    @property
    def mixings(self) -> tuple[Mixing, ...]:
        """The mixings before the rule, in order."""
        return self.before  # type: ignore[return-value]  # a tuple since construction

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        """The shortage of the first mixing, or of the rule, that cannot work on so few updates."""
        for name, mixing in zip(self.names, self.mixings, strict=True):
            if isinstance(mixing, Demanding) and (found := mixing.lacks(clients)):
                return replace(found, key=f"before.{name}.{found.key}")
            clients = mixing.merged(clients) if isinstance(mixing, Merging) else clients
        found = self.rule.lacks(clients) if isinstance(self.rule, Demanding) else None
        return replace(found, key=f"rule.{found.key}") if found else None

    def compares(self) -> str:
        """The name of the first mixing, or of the rule, that has to see all updates together."""
        for mixing in self.mixings:
            if not isinstance(mixing, Scaling):
                return type(mixing).__name__
        return self.rule.compares() if isinstance(self.rule, Additive) else type(self.rule).__name__

    def part(self, update: Update) -> tuple[float, float]:
        """The rule's coefficient times the mixings' factors, and its mass. Raises TypeError if a mixing compares."""
        if self.compares() or not isinstance(self.rule, Additive):
            raise TypeError(f"{self.compares()} has to see all updates together")
        coefficient, mass = self.rule.part(update)
        if self.mixings:
            length = abs(update.scale) * math.sqrt(squared_norm(update.delta))
            for mixing in self.mixings:
                assert isinstance(mixing, Scaling)
                factor = mixing.factor(length)
                coefficient, length = coefficient * factor, length * factor
        return coefficient, mass

    def divisor(self, mass: float, count: int, view: View) -> float:
        if not isinstance(self.rule, Additive):
            raise TypeError(f"{self.compares()} has to see all updates together")
        return self.rule.divisor(mass, count, view)

    def on(self, rows: UpdateMatrix, view: View) -> Tree:
        for mixing in self.mixings:
            rows = mixing(rows, view)
        return self.rule.on(rows, view)
