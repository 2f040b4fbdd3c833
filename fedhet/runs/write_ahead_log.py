"""The journal of a live run: what the server was told, on the disk before the server acts on it.

The server is a state machine without I/O, so its state follows from what it was told and when. Each such word is a row
of an SQLite file (write-ahead log, every commit on the disk); an update's payload is a file named by its SHA-256,
written and synced before its row. Every row carries a hash of itself and of all before it, and all are checked when
the journal is opened: a row or a payload that was altered or lost is an error, never another result. After a kill
the rows since the last checkpoint are told again, which gives the same bits: nothing accepted is lost, and nothing
counts twice, for a job can end once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhet.engine.server import Send, Server
from fedhet.engine.update_validation import Gate
from fedhet.numerics import wire_format
from fedhet.system import atomic_file
from fedhet.system.atomic_file import OR_ANEW, DamagedError
from fedhet.system.file_lock import RUN, acquired
from fedhet.types import ClientId, Job, JobId, Update

SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    n INTEGER PRIMARY KEY, kind TEXT NOT NULL, at REAL NOT NULL, job INTEGER, data TEXT NOT NULL,
    payload TEXT, sum TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS once ON rows (job) WHERE job IS NOT NULL;
CREATE TABLE IF NOT EXISTS run (id TEXT NOT NULL);
"""
LOOK_S = 0.5
"""Seconds for which a lock is asked for that somebody else may just be looking at."""


class JournalError(RuntimeError):
    """A journal that does not lead back to where the run was, or a job that would end twice."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One server process a run folder; a killed one lets go of it. Raises JournalError while another works on it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RUN).open("w") as file:
        if not acquired(file.fileno(), LOOK_S):  # somebody may just be looking
            raise JournalError(f"another server works on {folder}")
        yield


@dataclass(frozen=True, slots=True)
class Row:
    """One word to the server. `at` is the run's clock in seconds; `payload` is the update's bytes, if it has any."""

    n: int
    kind: str
    at: float
    job: JobId | None
    data: Mapping[str, Any]
    payload: bytes | None


class Journal:
    """`journal.db` and `payloads/` of a run folder. `run` names the run for good, whatever restarts it."""

    def __init__(self, folder: Path, *, began: bool = False) -> None:
        """`began` says that the run began in an earlier life, so that there must be a journal.

        Raises JournalError if there is none, and for one that is not what was written.
        """
        self.path, self._payloads = folder / "journal.db", folder / "payloads"
        if began and not self.path.is_file():
            raise JournalError(f"{self.path} is gone, but the run had begun: {OR_ANEW}")
        self._payloads.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, isolation_level=None, timeout=30.0)
        try:
            self._open(began)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise JournalError(f"{self.path} is damaged ({error}): {OR_ANEW}") from None
        except JournalError:
            self._db.close()
            raise

    def _open(self, began: bool) -> None:
        for line in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"):
            self._db.execute(line)
        if began and not self._db.execute("SELECT * FROM sqlite_master WHERE name = 'run'").fetchone():
            raise JournalError(f"{self.path} is empty, but the run had begun: {OR_ANEW}")
        self._db.executescript("BEGIN;" + SCHEMA + "COMMIT;")
        if not began:
            self._db.execute("INSERT INTO run SELECT ? WHERE NOT EXISTS (SELECT * FROM run)", (secrets.token_hex(16),))
        found = self._db.execute("SELECT id FROM run").fetchall()
        if len(found) != 1:
            raise JournalError(f"{self.path} names no run: {OR_ANEW}")
        self.run: str = found[0][0]
        self.last, self._sum = 0, _sum("", self.run)
        for n, *row, told in self._db.execute("SELECT n, kind, at, job, data, payload, sum FROM rows ORDER BY n"):
            self._sum = _sum(self._sum, n, *row)
            if n != self.last + 1 or told != self._sum:
                raise JournalError(f"{self.path}: row {n} is not what was written after row {self.last}: {OR_ANEW}")
            self.last = n

    def reaches(self, row: int, run: str) -> None:
        """Raises JournalError unless this is the journal of the run and goes as far as a checkpoint's row."""
        if run != self.run:
            raise JournalError(f"{self.path} is the journal of another run than the checkpoint's: {OR_ANEW}")
        if self.last < row:
            raise JournalError(f"{self.path} ends at row {self.last}, the checkpoint needs row {row}: {OR_ANEW}")

    def write(
        self, kind: str, at: float, job: JobId | None = None, payload: bytes | memoryview | None = None, **data: Any
    ) -> None:  # fmt: skip
        """One row, on the disk when this returns. `job` ends by it. Raises JournalError if it had ended before."""
        name = None if payload is None else self._keep(payload)
        row = (self.last + 1, kind, float(at), job, json.dumps(data), name)
        told = _sum(self._sum, *row)
        try:
            self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, told))
        except sqlite3.IntegrityError as error:
            raise JournalError(f"job {job} would end twice: {error}") from None
        self.last, self._sum = row[0], told

    def rows(self, after: int = 0) -> Iterator[Row]:
        """The rows with larger numbers, in order."""
        query = "SELECT n, kind, at, job, data, payload FROM rows WHERE n > ? ORDER BY n"
        for n, kind, at, job, data, name in self._db.execute(query, (after,)).fetchall():
            try:
                payload = None if name is None else atomic_file.read(self._payloads / name, name)
            except DamagedError as error:
                raise JournalError(f"row {n}: {error}") from None
            yield Row(n, kind, at, job, json.loads(data), payload)

    def forget(self, upto: int) -> None:
        """Delete payloads that a checkpoint of row `upto` made superfluous. The rows stay, as the run's ledger."""
        needed = self._db.execute("SELECT DISTINCT payload FROM rows WHERE n > ? AND payload IS NOT NULL", (upto,))
        keep = {name for (name,) in needed}
        for path in self._payloads.iterdir():
            if path.name not in keep:
                path.unlink()

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _keep(self, payload: bytes | memoryview) -> str:
        name = wire_format.digest(payload)
        path = self._payloads / name
        if not path.exists():
            part = path.with_name(name + ".part")
            atomic_file.write(part, payload)
            part.replace(path)
            atomic_file.sync_folder(self._payloads)
        return name


def _sum(before: str, *row: object) -> str:
    """The hash of a row and of all before it. Numbers are told as SQLite returns them."""
    return hashlib.sha256(json.dumps([before, *row]).encode()).hexdigest()


@dataclass(frozen=True)
class Journaled:
    """A server whose every word is written down before it hears it."""

    server: Server
    journal: Journal

    def start(self) -> None:
        self.journal.write("start", self.server.now)
        self.server.start()

    def exclude(self, clients: Collection[ClientId]) -> None:
        """Before the start: these clients are not there."""
        self.journal.write("exclude", self.server.now, clients=sorted(clients))
        self.server.excluded.update(clients)

    def profile_update(self, client: ClientId, fields: Mapping[str, Any]) -> None:
        """A client's profile, as far as it is known."""
        self.journal.write("profile_update", self.server.now, client=client, fields=dict(fields))
        self.server.roster.tell(client, fields)

    def arrived(self, update: Update, now: float) -> None:
        told = {"weight": update.weight, "scale": update.scale, "metrics": dict(update.metrics)}
        self.journal.write(
            "arrived", now, update.job.id, wire_format.encode(update.delta), client=update.job.client, **told
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
        """The jobs follow from what was told before; they are written down before they are sent, as a check."""
        sends = self.server.settle(now)
        if sends:
            self.journal.write("settle", now, jobs=[send.job.id for send in sends])
        return sends


def replay(journal: Journal, after: int, server: Server, gate: Gate, seen: Callable[[Row, list[Send]], None]) -> bool:
    """Tell a server again what it was told after row `after`; whether it had started by then.

    `seen` gets every row and what it made the server send. Raises JournalError if the server would send other jobs.
    """
    started = False
    for row in journal.rows(after):
        started = started or row.kind == "start"
        sends = _tell(row, server, gate)
        if row.kind == "settle" and [send.job.id for send in sends] != row.data["jobs"]:
            raise JournalError(f"row {row.n}: jobs {row.data['jobs']} became {[send.job.id for send in sends]}")
        seen(row, sends)
    return started


def _tell(row: Row, server: Server, gate: Gate) -> list[Send]:
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
            gate.clear_violations(data["client"])  # as the run did: its fate is the registry's
        case "wake":
            server.wake(at)
        case "stop":
            server.stop(data["reason"], at)
        case "settle":
            return server.settle(at)
        case other:
            raise JournalError(f"row {row.n} is of an unknown kind {other!r}")
    return []
