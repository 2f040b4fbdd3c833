"""Where updates are combined: with the server, or in processes that start when updates arrive. Opt-in, per run.

An `Aggregation` is what is configured; `begin` makes an `Aggregator`, which lives as long as the run. What the server
asks of it shows in no decision: a schedule, a layer or a rule cannot tell them apart. Rules whose sums can be formed as
updates arrive say so by being `Additive`; rules on rows (`fedhet.bases.rule`) can be split by columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fedhet.protocols import Rule, Space, View
from fedhet.types import ClientId, JobId, Tree, Update

if TYPE_CHECKING:
    from fedhet.engine.method import Method


class Aggregator(Protocol):
    """Holds updates from their arrival to their combination."""

    def arrived(self, update: Update) -> Update:
        """An update passed the gate. Returns it, its delta wherever it is kept from now on."""
        ...

    def dropped(self, jobs: Sequence[JobId]) -> None:
        """These updates will never be combined."""
        ...

    def combine(self, rule: Rule, updates: Sequence[Update], space: Space, view: View) -> Tree:
        """The rule's answer to updates that arrived; they are gone afterwards."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Aggregation(Protocol):
    """Hyper-parameters of an aggregator."""

    def check(self, method: Method) -> None:
        """Raises Misfit if the method cannot be combined in this way."""
        ...

    def begin(self, method: Method, clients: int) -> Aggregator:
        """The aggregator of one run with so many clients."""
        ...

    def notices(self, method: Method, clients: int) -> tuple[str, ...]:
        """What whoever runs this should hear of it, such as what was planned."""
        ...


@runtime_checkable
class KnownGroupSize(Protocol):
    """What a schedule says if it knows before the run how many updates it combines at a time."""

    def at_a_time(self, clients: int) -> int | None:
        """Updates that a usual combination takes, of so many clients; None if that depends on what happens."""
        ...


@runtime_checkable
class Repeating(Protocol):
    """What a schedule says if a combination of its can hold several updates of one client."""

    def at_most(self, clients: int) -> int | None:
        """Updates of so many clients that one combination can hold; None for any number."""
        ...


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a rule cannot combine: `key` is the hyper-parameter that asks for more, dotted from the rule, with its
    `value`; `why` is a sentence."""

    key: str
    value: object
    why: str


@runtime_checkable
class Demanding(Protocol):
    """What a rule says if not every number of updates will do."""

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        """Whether one update of each of these clients is too few to be combined. A client below 0 stands for several,
        whose updates were merged."""
        ...


@runtime_checkable
class Additive(Protocol):
    """What a rule says so that its sums can be formed piece by piece, in any number of places and in any order:

    answer = sum_i c_i u_i / whole(sum_i m_i, n),  with c_i and m_i from update i alone
    """

    def compares(self) -> str:
        """The part that has to see all updates together, by name; empty if none has: only then may they be split."""
        ...

    def part(self, update: Update) -> tuple[float, float]:
        """c_i, which multiplies `update.scale` times its delta, and m_i."""
        ...

    def divisor(self, mass: float, count: int, view: View) -> float:
        """What the sum is divided by, from the sum of all m_i and the number of updates. Raises ValueError if there is
        nothing to divide by."""
        ...


@dataclass(frozen=True)
class Flat:
    """All updates wait with the server, which applies the rule to them at once."""

    def check(self, method: Method) -> None:
        return None

    def begin(self, method: Method, clients: int) -> Flat:
        return self

    def notices(self, method: Method, clients: int) -> tuple[str, ...]:
        return ()

    def arrived(self, update: Update) -> Update:
        return update

    def dropped(self, jobs: Sequence[JobId]) -> None:
        return None

    def combine(self, rule: Rule, updates: Sequence[Update], space: Space, view: View) -> Tree:
        return rule(updates, space, view)

    def close(self) -> None:
        return None
