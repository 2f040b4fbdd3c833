"""The ledger of updates: every dispatched job ends in exactly one account, so the accounts add up to the jobs.

dispatched = accepted + late + rejected + failed + buffered + unfinished
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fedhet.report.run_reader import Row

ACCOUNTS = ("accepted", "late", "rejected", "failed", "buffered", "unfinished")
"""In display order. late: arrived and dropped; buffered: arrived, and not combined when the run ended."""


@dataclass
class Ledger:
    """Counts by account and, within an account, by reason ("" if there is none)."""

    dispatched: int = 0
    accounts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in ACCOUNTS})

    def add(self, account: str, reason: str = "", n: int = 1) -> None:
        self.accounts[account][reason] += n

    def total(self, account: str) -> int:
        return self.accounts[account].total()

    @property
    def accounted(self) -> int:
        return sum(self.total(name) for name in ACCOUNTS)

    @property
    def adds_up(self) -> bool:
        """Whether every dispatched job is in one account."""
        return self.dispatched == self.accounted

    def differences(self, other: Ledger) -> list[str]:
        """The differences between two ledgers of one run, as sentences."""
        pairs = [("dispatched", self.dispatched, other.dispatched)]
        pairs += [(name, self.total(name), other.total(name)) for name in ACCOUNTS]
        return [
            f"{name}: {mine} in the events, {theirs} in the result" for name, mine, theirs in pairs if mine != theirs
        ]


def from_result(result: Row, events: Ledger) -> Ledger:
    """The ledger in a result; accounts that it lacks are taken from the events. Raises ReportError."""
    updates = result.inner("updates")
    ledger = Ledger(updates.whole("dispatched") if "dispatched" in updates.data else events.dispatched)
    for name in ACCOUNTS:
        stated = updates.tally(name) if name in updates.data else events.accounts[name]
        ledger.accounts[name].update(stated)
    return ledger
