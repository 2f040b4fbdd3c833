"""Where updates are combined: in the server, or in processes that begin when updates arrive. Configured per run.

An `Aggregation` is the configuration; its `begin` makes an `Aggregator`, which lives as long as the run. The choice
does not change a decision: a schedule, a transform or a rule cannot observe it. A rule whose sums can be formed as
updates arrive is `Additive`; a rule on a matrix of updates (`fedhet.bases.rule`) can be split by columns.
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
    """Stores updates from their arrival to their combination."""

    def arrived(self, update: Update) -> Update:
        """Take an update that passed the gate. Returns it with its delta where it is stored from now on."""
        ...

    def dropped(self, jobs: Sequence[JobId]) -> None:
        """Delete updates that are not combined."""
        ...

    def combine(self, rule: Rule, updates: Sequence[Update], space: Space, view: View) -> Tree:
        """The rule's result on updates that arrived; they are deleted afterwards."""
        ...

    def close(self) -> None:
        """Release all resources; the run is over."""
        ...


class Aggregation(Protocol):
    """Hyper-parameters of an aggregator."""

    def check(self, method: Method) -> None:
        """Raises Misfit if updates of the method cannot be combined in this way."""
        ...

    def begin(self, method: Method, clients: int) -> Aggregator:
        """The aggregator of one run with this number of clients."""
        ...

    def notices(self, method: Method, clients: int) -> tuple[str, ...]:
        """Sentences for the operator, such as the plan that was chosen."""
        ...


@runtime_checkable
class KnownGroupSize(Protocol):
    """A schedule that knows before the run how many updates it combines at a time."""

    def at_a_time(self, clients: int) -> int | None:
        """Updates of a usual combination with this number of clients; None if it depends on the course of the run."""
        ...


@runtime_checkable
class Repeating(Protocol):
    """A schedule whose combinations can contain several updates of one client."""

    def at_most(self, clients: int) -> int | None:
        """The largest number of updates in one combination with this number of clients; None for any number."""
        ...


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a rule cannot combine: `key` is the hyper-parameter that needs more updates, as a dotted path from the rule,
    with its `value`; `why` is a sentence."""

    key: str
    value: object
    why: str


@runtime_checkable
class Demanding(Protocol):
    """A rule that needs a minimal number of updates."""

    def lacks(self, clients: Sequence[ClientId]) -> Shortage | None:
        """Why one update of each of these clients is too few to combine; None if it is enough. A negative client is a
        merged update of several clients."""
        ...


@runtime_checkable
class Additive(Protocol):
    """A rule whose result is a quotient of sums, which can be formed in parts, in any number of places and any order:

    result = sum_i c_i u_i / divisor(sum_i m_i, n),  with c_i and m_i from update i alone
    """

    def compares(self) -> str:
        """The name of the part that needs all updates together; empty if there is none: only then may they be split."""
        ...

    def part(self, update: Update) -> tuple[float, float]:
        """(c_i, m_i); c_i multiplies `update.scale` times the delta."""
        ...

    def divisor(self, mass: float, count: int, view: View) -> float:
        """The divisor, from the sum of all m_i and the number of updates. Raises ValueError if it is not positive."""
        ...


@dataclass(frozen=True)
class Flat:
    """The server stores all updates and applies the rule to them at once."""

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
