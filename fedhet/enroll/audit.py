"""What was done to the federation, and by whom: an append-only file whose every line holds the hash of the one before.

    hash(n) = SHA-256(domain, hash(n - 1), canonical JSON of line n)

A change anywhere breaks the chain at that line; cutting lines off the end shows against `audit.head`, which is written
after each line. Who can write both files can still forge the whole: keep a copy of the head elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhet.enroll import files
from fedhet.enroll.canonical import canonical, digest
from fedhet.enroll.errors import EnrollError

DOMAIN = "fedhet.audit.v1"
START = "0" * 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check: lines read, the last hash, and the first bad line (from 1) with what is wrong."""

    lines: int
    head: str
    bad: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """The log in a file. Several processes may append: each holds a lock for one line."""

    path: Path
    clock: Callable[[], float] = time.time

    def append(self, actor: str, action: str, subject: str = "", **detail: Any) -> str:
        """Add a line and return its hash; it is on the disk when this returns. `detail` must not hold secrets."""
        with self._locked() as handle:
            number, previous = _last(handle)
            body = {"n": number + 1, "time": int(self.clock()), "actor": actor, "action": action, "subject": subject}
            body |= {"detail": _plain(detail), "prev": previous}
            line_hash = _hash(previous, body)
            size, line = os.lseek(handle, 0, os.SEEK_END), canonical({**body, "hash": line_hash}) + b"\n"
            try:
                if os.write(handle, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(handle)
                files.write_file(self._head, f"{number + 1} {line_hash}\n")
            except OSError:  # what it tells of is not done either
                os.ftruncate(handle, size)
                raise
        return line_hash

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines as they are, unchecked."""
        if self.path.exists():
            with self.path.open("rb") as lines:
                for line in lines:
                    yield json.loads(line)

    def verify(self) -> Verdict:
        """Check every line and the end. Never raises for a damaged file: the verdict names the first bad line."""
        previous, number = START, 0
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            why = _fault(line, number + 1, previous)
            if why:
                return Verdict(number, previous, number + 1, why)
            number, previous = number + 1, str(json.loads(line)["hash"])
        return self._end(number, previous)

    def check(self) -> Verdict:
        """`verify`, raising EnrollError E310 if the log was altered."""
        verdict = self.verify()
        if verdict.bad is not None:
            raise EnrollError("E310", f"line {verdict.bad}: {verdict.why}", line=verdict.bad)
        return verdict

    @property
    def _head(self) -> Path:
        return self.path.with_name(self.path.name + ".head")

    def _end(self, number: int, previous: str) -> Verdict:
        if not self._head.exists():
            return Verdict(number, previous, *((number + 1, "the head file is missing") if number else ()))
        count, _, noted = self._head.read_text().strip().partition(" ")
        # One line more than the head is what a power cut between the two leaves.
        if not count.isdigit() or number not in (int(count), int(count) + 1):
            return Verdict(number, previous, number + 1, f"{number} lines, but the head says {count}")
        if number == int(count) and noted != previous:
            return Verdict(number, previous, number, "its hash is not the head's")
        return Verdict(number, previous)

    def _locked(self) -> _Lock:
        return _Lock(self.path)


@dataclass(slots=True)
class _Lock:
    path: Path
    handle: int = -1

    def __enter__(self) -> int:
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        return self.handle

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)


def _last(handle: int) -> tuple[int, str]:
    """Number and hash of the last whole line; a torn end, which no answer was given for, is cut off."""
    size = os.lseek(handle, 0, os.SEEK_END)
    tail, start = b"", size
    while start and tail.count(b"\n") < 2:
        start = max(0, start - (1 << 16))
        tail = os.pread(handle, size - start, start)
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        os.ftruncate(handle, start + len(whole))
    if not whole:
        return 0, START
    row = json.loads(whole.splitlines()[-1])
    return int(row["n"]), str(row["hash"])


def _hash(previous: str, body: Mapping[str, Any]) -> str:
    return digest(DOMAIN, bytes.fromhex(previous), canonical(body)).hex()


def _fault(line: bytes, number: int, previous: str) -> str:
    try:
        row = json.loads(line)
        found = row.pop("hash")
        if row["n"] != number:
            return f"it is numbered {row['n']}"
        if row["prev"] != previous:
            return "it does not follow the line before"
        if _hash(previous, row) != found or canonical({**row, "hash": found}) != line:
            return "its content does not match its hash"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {type(error).__name__}"
    return ""


def _plain(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in detail.items() if v is not None}
