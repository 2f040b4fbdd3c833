"""Where updates are combined: with the server, or in processes that start when updates arrive. Opt-in, per run.

An `Aggregation` is what is configured; `begin` makes an `Aggregator`, which lives as long as the run. What the server
asks of it shows in no decision: a schedule, a layer or a rule cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedhet.protocols import Rule, Space, View
from fedhet.types import JobId, Tree, Update

if TYPE_CHECKING:
    from fedhet.compose import Method


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

    def begin(self, method: Method) -> Aggregator:
        """The aggregator of one run."""
        ...


@dataclass(frozen=True)
class Flat:
    """All updates wait with the server, which applies the rule to them at once."""

    def check(self, method: Method) -> None:
        return None

    def begin(self, method: Method) -> Flat:
        return self

    def arrived(self, update: Update) -> Update:
        return update

    def dropped(self, jobs: Sequence[JobId]) -> None:
        return None

    def combine(self, rule: Rule, updates: Sequence[Update], space: Space, view: View) -> Tree:
        return rule(updates, space, view)

    def close(self) -> None:
        return None
