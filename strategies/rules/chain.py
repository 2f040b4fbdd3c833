"""Mixtures in front of a rule: rows M x instead of x, where every M follows from inner products alone.

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
    """New rows from old, by `UpdateMatrix.mix` and `UpdateMatrix.times`. One that compares updates says `needs` =
    {"distances"}."""

    def __call__(self, rows: UpdateMatrix, view: View) -> UpdateMatrix: ...


@runtime_checkable
class Scaling(Protocol):
    """A mixing that multiplies each update by a number that its length alone decides."""

    def factor(self, length: float) -> float: ...


@runtime_checkable
class Merging(Protocol):
    """A mixing behind which there are other rows than updates."""

    def merged(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        """Whose the rows are that it makes of one update of each of these clients; -1: of several."""
        ...


@dataclass(frozen=True)
class Chain(AbstractRule):
    """A rule behind mixtures, applied in the order given; needs what the rule needs. Chains may be nested.

    before: mixtures, or a mapping of names to mixtures, where None leaves one out. Raises ValueError for a rule that
    does not work on rows.
    """

    before: Iterable[Mixing] | Mapping[str, Mixing | None]
    rule: AbstractRule
    names: tuple[str, ...] = field(init=False, default=(), compare=False)
    """The mixtures' names, or their places if they have none."""

    def __post_init__(self) -> None:
        given = self.before if isinstance(self.before, Mapping) else dict(enumerate(self.before))
        kept = {str(name): mixing for name, mixing in given.items() if mixing is not None}
        object.__setattr__(self, "before", tuple(kept.values()))
        object.__setattr__(self, "names", tuple(kept))
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
        """What the rule gives if nothing stands in front of it."""
        return frozenset() if self.mixings else getattr(self.rule, "gives", frozenset())

    @property
    def mixings(self) -> tuple[Mixing, ...]:
        """What stands before the rule, in order."""
        return self.before  # type: ignore[return-value]  # a tuple since construction

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        """What the first part lacks that cannot work on so few."""
        for name, mixing in zip(self.names, self.mixings, strict=True):
            if isinstance(mixing, Demanding) and (found := mixing.lacks(clients)):
                return replace(found, key=f"before.{name}.{found.key}")
            clients = mixing.merged(clients) if isinstance(mixing, Merging) else clients
        found = self.rule.lacks(clients) if isinstance(self.rule, Demanding) else None
        return replace(found, key=f"rule.{found.key}") if found else None

    def compares(self) -> str:
        """The first part that has to see all updates together."""
        for mixing in self.mixings:
            if not isinstance(mixing, Scaling):
                return type(mixing).__name__
        return self.rule.compares() if isinstance(self.rule, Additive) else type(self.rule).__name__

    def part(self, update: Update) -> tuple[float, float]:
        """The rule's, the coefficient times what the mixtures scale it by. Raises TypeError if one of them compares."""
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
