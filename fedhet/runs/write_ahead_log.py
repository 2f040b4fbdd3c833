"""The journal of a live run: the server's inputs, on the disk before the server processes them.

The server is a state machine without I/O, so its state follows from its inputs and their times. Each input is a row of
an SQLite file (write-ahead log, every commit synced); an update's payload is a file named by its SHA-256, written and
synced before its row. Every row has a hash of itself and of all rows before it, and all are checked when the journal is
opened: an altered or lost row or payload is an error, never another result. After a kill the rows since the last
checkpoint are replayed (`fedhet.runs.journaled_server`), which gives the same bits: no accepted update is lost, and
none counts twice, since a job can end only once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhet.numerics import wire_format
from fedhet.system import atomic_file
from fedhet.system.atomic_file import OR_ANEW, DamagedError
from fedhet.system.file_lock import RUN, acquired
from fedhet.types import JobId

SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    n INTEGER PRIMARY KEY, kind TEXT NOT NULL, at REAL NOT NULL, job INTEGER, data TEXT NOT NULL,
    payload TEXT, sum TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS once ON rows (job) WHERE job IS NOT NULL;
CREATE TABLE IF NOT EXISTS run (id TEXT NOT NULL);
"""
LOCK_SECONDS = 0.5
"""How long to try for a lock that a process which only tests it may hold for a moment."""


class JournalError(RuntimeError):
    """A journal from which the run cannot be restored, or a job that would end twice."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A context manager: one server process per run folder. A killed process releases the lock. Raises JournalError
    while another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RUN).open("w") as file:
        if not acquired(file.fileno(), LOCK_SECONDS):
            raise JournalError(f"another server works on {folder}")
        yield


@dataclass(frozen=True, slots=True)
class Row:
    """One input of the server. `at` is the run's clock in seconds; `payload` is the encoded update, if it has one."""

    n: int
    kind: str
    at: float
    job: JobId | None
    data: Mapping[str, Any]
    payload: bytes | None


class Journal:
    """`journal.db` and `payloads/` of a run folder. `run` names the run; it stays the same after a restart."""

    def __init__(self, folder: Path, *, began: bool = False) -> None:
        """`began`: the run began in an earlier process, so a journal must exist.

        Raises JournalError if it does not, and for one that was altered.
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
        for n, *row, stored in self._db.execute("SELECT n, kind, at, job, data, payload, sum FROM rows ORDER BY n"):
            self._sum = _sum(self._sum, n, *row)
            if n != self.last + 1 or stored != self._sum:
                raise JournalError(f"{self.path}: row {n} is not what was written after row {self.last}: {OR_ANEW}")
            self.last = n

    def check_reaches(self, row: int, run: str) -> None:
        """Raises JournalError unless this is the journal of the run and has a checkpoint's last row."""
        if run != self.run:
            raise JournalError(f"{self.path} is the journal of another run than the checkpoint's: {OR_ANEW}")
        if self.last < row:
            raise JournalError(f"{self.path} ends at row {self.last}, the checkpoint needs row {row}: {OR_ANEW}")

    def write(
        self, kind: str, at: float, job: JobId | None = None, payload: bytes | memoryview | None = None, **data: Any
    ) -> None:  # fmt: skip
        """Write one row, synced on return. It ends `job`; raises JournalError if the job ended before."""
        name = None if payload is None else self._store(payload)
        row = (self.last + 1, kind, float(at), job, json.dumps(data), name)
        total = _sum(self._sum, *row)
        try:
            self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, total))
        except sqlite3.IntegrityError as error:
            raise JournalError(f"job {job} would end twice: {error}") from None
        self.last, self._sum = row[0], total

    def rows(self, after: int = 0) -> Iterator[Row]:
        """The rows after this number, in order. Raises JournalError for an altered or missing payload."""
        query = "SELECT n, kind, at, job, data, payload FROM rows WHERE n > ? ORDER BY n"
        for n, kind, at, job, data, name in self._db.execute(query, (after,)).fetchall():
            try:
                payload = None if name is None else atomic_file.read(self._payloads / name, name)
            except DamagedError as error:
                raise JournalError(f"row {n}: {error}") from None
            yield Row(n, kind, at, job, json.loads(data), payload)

    def forget(self, upto: int) -> None:
        """Delete payloads that are not needed after a checkpoint at row `upto`. The rows stay as the run's history."""
        needed = self._db.execute("SELECT DISTINCT payload FROM rows WHERE n > ? AND payload IS NOT NULL", (upto,))
        keep = {name for (name,) in needed}
        for path in self._payloads.iterdir():
            if path.name not in keep:
                path.unlink()

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _store(self, payload: bytes | memoryview) -> str:
        name = wire_format.digest(payload)
        path = self._payloads / name
        if not path.exists():
            part = path.with_name(name + ".part")
            atomic_file.write(part, payload)
            part.replace(path)
            atomic_file.sync_folder(self._payloads)
        return name


def _sum(before: str, *row: object) -> str:
    """The hash of a row and of all rows before it. Numbers are encoded as SQLite returns them."""
    return hashlib.sha256(json.dumps([before, *row]).encode()).hexdigest()
