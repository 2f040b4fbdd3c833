"""The log of a run: one JSON line per event and command, one per evaluation, and their hash.

Rows are in the order of events; in virtual time the file has the same bytes for any number of workers. A resumed run
truncates the files to its checkpoint and appends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fedhet.system.atomic_file import OR_ANEW, DamagedError, sync_folder

ENCODE = json.JSONEncoder(separators=(",", ":")).encode
"""A row as JSON; `json.dumps` with separators would make an encoder for every row."""


class Lines:
    """An append-only file of JSON lines with a running SHA-256."""

    def __init__(self, path: Path, keep: int = 0, sha256: str = "") -> None:
        """Open the file and truncate it to its first `keep` bytes, whose hash is `sha256`.

        Raises DamagedError for a file that is missing, shorter, or altered.
        """
        self.path, self._hash = path, hashlib.sha256()
        try:
            self._file: BinaryIO = path.open("r+b" if keep else "wb")
        except FileNotFoundError:
            raise DamagedError(f"{path} is gone, the checkpoint needs {keep} bytes of it: {OR_ANEW}") from None
        self.size = 0
        while self.size < keep:
            part = self._file.read(min(1 << 20, keep - self.size))
            if not part:
                raise DamagedError(f"{path} has {self.size} bytes, the checkpoint needs {keep}: {OR_ANEW}")
            self._hash.update(part)
            self.size += len(part)
        if keep and sha256 and self.sha256 != sha256:
            raise DamagedError(f"{path} is not what the run wrote in its first {keep} bytes: {OR_ANEW}")
        self._file.truncate(keep)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        line = ENCODE(row).encode() + b"\n"
        self._file.write(line)
        self._hash.update(line)
        self.size += len(line)

    def sync(self) -> None:
        """Write all rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()

    @property
    def sha256(self) -> str:
        """The hash of all rows written so far, in hex."""
        return self._hash.hexdigest()


ROWS = 1024
"""Rows of events after which `Record.tick` is called."""


class Record:
    """events.jsonl and metrics.jsonl of one run folder. `tick` is called after every `ROWS` events."""

    def __init__(self, folder: Path, keep: Mapping[str, Any] | None = None) -> None:
        """`keep` is the result of `mark` to which the files are truncated; None truncates them to 0 bytes."""
        self.tick: Callable[[], None] = lambda: None
        self._rows = 0
        self.events, self.metrics = (
            Lines(folder / f"{name}.jsonl", *(keep[name] if keep else ())) for name in ("events", "metrics")
        )

    def mark(self) -> dict[str, tuple[int, str]]:
        """The present size in bytes and hash of each file."""
        return {"events": (self.events.size, self.events.sha256), "metrics": (self.metrics.size, self.metrics.sha256)}

    def emit(self, t: float, name: str, fields: Mapping[str, Any]) -> None:
        """One row of the event log."""
        self.events.write({"t": t, "event": name, **fields})
        self._rows += 1
        if not self._rows % ROWS:
            self.tick()

    def sync(self) -> None:
        self.events.sync()
        self.metrics.sync()

    def close(self) -> None:
        self.events.close()
        self.metrics.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a JSON-lines file, without an incomplete last line (of a killed run). Raises ValueError for
    a line that is not JSON."""
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return rows


def complete_bytes(path: Path) -> int:
    """Size of the complete lines of a file in bytes; 0 if the file does not exist."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - (1 << 16))
            file.seek(start)
            end = file.read(at - start).rfind(b"\n")
            if end >= 0:
                return start + end + 1
            at = start
        return 0


def write_atomic(path: Path, text: str) -> None:
    """Write a file atomically: as a temporary file, synced and renamed; on the disk on return."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def write_new(path: Path, text: str) -> None:
    """Create a file atomically. Raises FileExistsError if it exists, also if another process creates it now."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)  # unlike a rename it fails if the name exists
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def accepted(folder: Path) -> int:
    """Number of accepted answers in the journal of a run folder; 0 if it has no journal."""
    if not (folder / "journal.db").exists():
        return 0
    with contextlib.closing(sqlite3.connect(folder / "journal.db", timeout=30.0)) as db:
        try:
            (count,) = db.execute("SELECT count(*) FROM rows WHERE kind = 'arrived'").fetchone()
        except sqlite3.OperationalError:  # the process was killed before it created the table
            return 0
    return int(count)
