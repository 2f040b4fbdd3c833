"""Reads an event log row by row into the records and totals that a page shows.

Everything is counted, but only the first jobs, combinations and groups are stored, so that memory grows only by one
small record per client and one per open job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fedhet.report.event_records import Client, Combination, Discount, Group, Job
from fedhet.report.run_reader import Name, Row
from fedhet.report.update_accounting import Ledger

MAX_JOBS = 20_000
MAX_COMBINATIONS = 5_000
MAX_GROUPS = 2_000


@dataclass
class Story:
    """What happened in a run."""

    rows: int = 0
    end: float = 0.0
    stopped: str = ""
    ledger: Ledger = field(default_factory=Ledger)
    jobs: list[Job] = field(default_factory=list)
    combinations: list[Combination] = field(default_factory=list)
    combined: int = 0
    groups: dict[Name, Group] = field(default_factory=dict)
    grouped: int = 0
    clients: dict[Name, Client] = field(default_factory=dict)
    discounts: dict[int, Discount] = field(default_factory=dict)
    overdue: int = 0
    """Answers that arrived after their group's latest time."""
    grouped_answers: int = 0
    """Answers to jobs of a group with a latest time."""
    _open: dict[int, Job] = field(default_factory=dict)
    _placed: dict[Name, Name] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Story:
        """Read a log. Raises ReportError for an impossible row, such as an answer to an unknown job."""
        story = cls()
        for row in rows:
            story._take(row)
        for job in story._open.values():
            story.ledger.add(job.account, job.reason)
        return story

    def _take(self, row: Row) -> None:
        at = row.time("t")
        self.rows += 1
        self.end = max(self.end, at)
        match row.data.get("event"):
            case "assign":
                self._assign(row, at)
            case "client_timing" | "flight":  # its name in logs of earlier versions
                self._flight(row)
            case "arrived":
                self._arrived(row, at)
            case "failed":
                self._failed(row, at)
            case "rejected":
                self._close(self._find(row), at, "rejected", row.text("code", "unknown"))
            case "dropped":
                for job in row.wholes("jobs"):
                    self._close(self._get(row, job), at, "late", row.text("reason", "late"))
            case "combined":
                self._combine(row, at)
            case "note" if row.data.get("kind") == "group":
                self._note(row, at)
            case "stopped":
                self.stopped = row.text("reason")
            case str():
                pass  # wake, joined, left, other notes: not shown
            case other:
                row.fail(f"'event' is {other!r}, not a name")

    def _get(self, row: Row, job: int) -> Job:
        if job not in self._open:
            row.fail(f"job {job} is not open: it was never assigned, or has ended before")
        return self._open[job]

    def _find(self, row: Row) -> Job:
        return self._get(row, row.whole("job"))

    def _assign(self, row: Row, at: float) -> None:
        job = Job(row.whole("job"), row.name("client"), row.whole("version"), at)
        if job.id in self._open:
            row.fail(f"job {job.id} is assigned twice")
        job.steps = row.whole("steps") if "steps" in row.data else 0
        job.group = self._placed.pop(job.client, None)
        group = None if job.group is None else self.groups.get(job.group)
        job.latest = None if group is None else group.latest
        self._open[job.id] = job
        self.ledger.dispatched += 1
        self.clients.setdefault(job.client, Client(job.client)).tasks += 1
        if len(self.jobs) < MAX_JOBS:
            self.jobs.append(job)

    def _flight(self, row: Row) -> None:
        job = self._find(row)
        job.downloaded, job.trained, job.arrives = (row.optional(k) for k in ("downloaded", "trained", "arrives"))

    def _arrived(self, row: Row, at: float) -> None:
        job = self._find(row)
        job.ended, job.account = at, "buffered"
        self.grouped_answers += job.latest is not None
        self.overdue += job.overdue > 0
        weight = row.optional("weight")
        job.weight = weight if weight is not None else 0.0
        client = self.clients[job.client]
        client.arrived += 1
        client.seconds += max(0.0, at - job.sent)
        client.steps += job.steps

    def _failed(self, row: Row, at: float) -> None:
        reason = row.text("reason", "unknown")
        kind, _, rest = reason.partition(":")
        if kind == "rejected":
            self._close(self._find(row), at, "rejected", rest.strip() or "unknown")
        else:  # the text after a colon is a detail and not counted separately
            job = self._find(row)
            self._close(job, at, "failed", kind)
            job.reason = reason

    def _close(self, job: Job, at: float, account: str, reason: str) -> None:
        del self._open[job.id]
        job.ended = at if job.ended is None else job.ended
        job.account, job.reason = account, reason
        if account in ("failed", "rejected"):
            self.clients[job.client].lost += 1
        self.ledger.add(account, reason)

    def _combine(self, row: Row, at: float) -> None:
        jobs, staleness, scales = row.wholes("jobs"), row.wholes("staleness"), row.numbers("scales")
        if not len(jobs) == len(staleness) == len(scales):
            row.fail(f"{len(jobs)} jobs, {len(staleness)} stalenesses and {len(scales)} scales do not go together")
        version = row.whole("version")
        for number, stale, scale in zip(jobs, staleness, scales, strict=True):
            job = self._get(row, number)
            job.combined, job.staleness, job.scale, job.into = at, stale, scale, version
            self._close(job, at, "accepted", "")
            client = self.clients[job.client]
            client.accepted += 1
            client.weight += job.weight
            client.staleness += stale
            self.discounts.setdefault(stale, Discount()).add(scale)
        self.combined += 1
        if len(self.combinations) < MAX_COMBINATIONS:
            self.combinations.append(Combination(at, version, len(jobs)))

    def _note(self, row: Row, at: float) -> None:
        name = row.name("group")
        group = self.groups.get(name)
        if group is None:
            self.grouped += 1
            group = Group(name, at)
            if len(self.groups) < MAX_GROUPS:
                self.groups[name] = group
        expected, latest = row.optional("due" if "due" in row.data else "expected"), row.optional("latest")
        group.expected = group.expected if expected is None else expected
        group.latest = group.latest if latest is None else latest
        if "client" in row.data:
            client = row.name("client")
            group.members[client] = row.whole("steps") if "steps" in row.data else 0
            self._placed[client] = name
