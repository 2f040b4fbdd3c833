"""A server whose inputs are journaled before it processes them, and the replay of a journal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fedhet.engine.server import Send, Server
from fedhet.engine.update_validation import Gate
from fedhet.numerics import wire_format
from fedhet.runs.write_ahead_log import Journal, JournalError, Row
from fedhet.types import ClientId, Job, JobId, Update


@dataclass(frozen=True)
class Journaled:
    """The inputs of a server, each written to the journal before the server processes it."""

    server: Server
    journal: Journal

    def start(self) -> None:
        self.journal.write("start", self.server.now)
        self.server.start()

    def exclude(self, clients: Collection[ClientId]) -> None:
        """Before the start: these clients do not take part."""
        self.journal.write("exclude", self.server.now, clients=sorted(clients))
        self.server.excluded.update(clients)

    def profile_update(self, client: ClientId, fields: Mapping[str, Any]) -> None:
        """The declared fields of a client's profile changed."""
        self.journal.write("profile_update", self.server.now, client=client, fields=dict(fields))
        self.server.roster.tell(client, fields)

    def arrived(self, update: Update, now: float) -> None:
        fields = {"weight": update.weight, "scale": update.scale, "metrics": dict(update.metrics)}
        self.journal.write(
            "arrived", now, update.job.id, wire_format.encode(update.delta), client=update.job.client, **fields
        )
        self.server.arrived(update, now)

    def failed(self, job_id: JobId, reason: str, now: float) -> None:
        self.journal.write("failed", now, job_id, reason=reason)
        self.server.failed(job_id, reason, now)

    def reject(self, job: Job, code: str, detail: str, now: float) -> None:
        self.journal.write("reject", now, job.id, client=job.client, code=code, detail=detail)
        self.server.reject(job, code, detail, now)

    def joined(self, client: ClientId, now: float) -> None:
        self.journal.write("joined", now, client=client)
        self.server.joined(client, now)

    def left(self, client: ClientId, now: float) -> None:
        self.journal.write("left", now, client=client)
        self.server.left(client, now)

    def expel(self, client: ClientId, reason: str, now: float) -> None:
        self.journal.write("expel", now, client=client, reason=reason)
        self.server.expel(client, reason, now)

    def wake(self, now: float) -> None:
        self.journal.write("wake", now)
        self.server.wake(now)

    def stop(self, reason: str, now: float) -> None:
        self.journal.write("stop", now, reason=reason)
        self.server.stop(reason, now)

    def settle(self, now: float) -> list[Send]:
        """Jobs follow from the inputs before; their ids are journaled before they are sent, to check a replay."""
        sends = self.server.settle(now)
        if sends:
            self.journal.write("settle", now, jobs=[send.job.id for send in sends])
        return sends


def replay(journal: Journal, after: int, server: Server, gate: Gate, seen: Callable[[Row, list[Send]], None]) -> bool:
    """Repeat the inputs after row `after`; whether the server's start is among them.

    `seen` is called with every row and the jobs that the server sends at it. Raises JournalError if these are not the
    journaled ones.
    """
    started = False
    for row in journal.rows(after):
        started = started or row.kind == "start"
        sends = _repeat(row, server, gate)
        if row.kind == "settle" and [send.job.id for send in sends] != row.data["jobs"]:
            raise JournalError(f"row {row.n}: jobs {row.data['jobs']} became {[send.job.id for send in sends]}")
        seen(row, sends)
    return started


def _repeat(row: Row, server: Server, gate: Gate) -> list[Send]:
    data, at = row.data, row.at
    match row.kind:
        case "start":
            server.start()
        case "exclude":
            server.excluded.update(data["clients"])
        case "profile_update":
            server.roster.tell(data["client"], data["fields"])
        case "arrived":
            assert row.job is not None and row.payload is not None
            job = server.inflight[row.job]
            delta = wire_format.open_tree(row.payload)
            update = Update(job, delta, data["weight"], data["scale"], data["metrics"])
            gate.remember([update])
            server.arrived(update, at)
        case "failed":
            assert row.job is not None
            server.failed(row.job, data["reason"], at)
        case "reject":
            assert row.job is not None
            gate.record_violation(data["client"], data["code"], at)
            server.reject(server.inflight[row.job], data["code"], data["detail"], at)
        case "joined":
            gate.release(at)
            server.joined(data["client"], at)
        case "left":
            server.left(data["client"], at)
        case "expel":
            server.expel(data["client"], data["reason"], at)
            gate.clear_violations(data["client"])  # as the run did: the registry decides about this client
        case "wake":
            server.wake(at)
        case "stop":
            server.stop(data["reason"], at)
        case "settle":
            return server.settle(at)
        case other:
            raise JournalError(f"row {row.n} is of an unknown kind {other!r}")
    return []
