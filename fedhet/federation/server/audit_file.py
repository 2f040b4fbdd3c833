"""The audit log's three files: lines (`audit.jsonl`), the signed head (`audit.jsonl.head`) and the key (`audit.key`).

Every process that appends or verifies holds a lock on the log file, and fsyncs a line before its head."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki.canonical_json import canonical
from fedhet.federation.server import audit_chain
from fedhet.federation.server.audit_chain import KEY_BYTES, START, LogLine
from fedhet.system.file_lock import acquired

TAIL_BYTES = 1 << 16
"""Bytes at the end of the log that are searched for lines which were written already."""
REKEY_HINT = "if there is no copy: fedhet audit rekey"


LOCK_S = 30.0
"""Seconds to wait for the lock while another process appends or verifies."""


@dataclass(frozen=True, slots=True)
class AuditFile:
    """The files of an audit log. Several processes may append: each locks the log file while it does."""

    path: Path
    clock: Callable[[], float] = time.time

    @property
    def is_keyed(self) -> bool:
        """Whether there is a key. The log of an earlier version gets one with its next line."""
        return self.key_file.exists()

    @property
    def head_file(self) -> Path:
        return self.path.with_name(self.path.name + ".head")

    @property
    def key_file(self) -> Path:
        return self.path.with_suffix(".key")

    def read_key(self) -> bytes | None:
        """The key, or None if there is none. Raises EnrollError E324."""
        if not self.key_file.exists():
            return None
        key = private_files.read_private(self.key_file)
        if len(key) != KEY_BYTES:
            problem = f"{len(key)} bytes, not {KEY_BYTES}" if key else "it is empty"
            raise EnrollError("E324", f"{self.key_file}: {problem}; {REKEY_HINT}")
        return key

    def key_for(self, last: LogLine | None) -> bytes:
        """The key; a new one is made if no line of the log is keyed. Raises EnrollError E324."""
        key = self.read_key()
        if key is None:
            if last is not None and "keyed" in last:
                raise self.missing_key()
            key = secrets.token_bytes(KEY_BYTES)
            private_files.write_file(self.key_file, key)
        return key

    def missing_key(self) -> EnrollError:
        return EnrollError("E324", f"{self.key_file} is gone; {REKEY_HINT}")

    def read_head(self) -> tuple[int, str, str]:
        """Number and hash of the line that the head names, and its HMAC; 0 if the head is missing or malformed."""
        try:
            count, hashed_line, *mac = self.head_file.read_text().split()
            return int(count), hashed_line, "".join(mac)
        except (FileNotFoundError, ValueError):
            return 0, "", ""

    def head_fault(
        self, last: LogLine | None, before: LogLine | None, key: bytes | None, *, signed: bool = True
    ) -> str:
        """Why head and log disagree; "" if they agree. A log that is one line ahead of its head agrees: a power cut
        leaves that. `signed`: whether the head's HMAC can be verified."""
        (number, _), (count, hashed_line, mac) = audit_chain.number_and_hash(last), self.read_head()
        at = last if count == number else before
        if number not in (count, count + 1):
            return f"{number} lines, but the head says {count}" if count else "the head is missing or cannot be read"
        if at is None:
            return ""
        if hashed_line != at["hash"]:
            return "its hash is not the head's"
        if (
            signed
            and (mac or "keyed" in at)
            and (key is None or not hmac.compare_digest(mac, audit_chain.head_mac(key, count, hashed_line)))
        ):
            return "the head is not signed by the key"
        return ""

    def write_line(self, handle: int, body: Mapping[str, Any], key: bytes) -> str:
        """Append one line and write the head, or neither. Returns the line's hash. Raises OSError."""
        hashed = audit_chain.line_hash(str(body["prev"]), body, key)
        content, begin = canonical({**body, "hash": hashed}) + b"\n", os.lseek(handle, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(content):
                written += os.write(handle, content[written:])
            os.fsync(handle)
            self.write_head(body["n"], hashed, key)
        except OSError as error:  # the change that the line describes is not made either
            os.ftruncate(handle, begin)
            raise OSError(error.errno, error.strerror, error.filename or str(self.path)) from None
        return hashed

    def write_head(self, number: int, hashed: str, key: bytes) -> None:
        private_files.write_file(self.head_file, f"{number} {hashed} {audit_chain.head_mac(key, number, hashed)}\n")

    @contextmanager
    def locked(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock(handle, self.path)
            yield handle
        finally:
            os.close(handle)


def lock(handle: int, path: Path, *, shared: bool = False) -> None:
    """Lock an open log file. Raises EnrollError E320 if another process holds the lock for `LOCK_S`."""
    if not acquired(handle, LOCK_S, shared=shared):
        raise EnrollError("E320", f"{path} was locked for {LOCK_S:g} s")


def last_lines(handle: int) -> tuple[LogLine | None, LogLine | None, bytes]:
    """The last complete line, the one before it, and the complete lines of the tail as bytes. An incomplete last line
    is removed from the file.

    Raises EnrollError E310 if the last lines cannot be parsed.
    """
    size = os.lseek(handle, 0, os.SEEK_END)
    tail, start = b"", size
    while start and (len(tail) < TAIL_BYTES or tail.count(b"\n") < 4):
        start = max(0, start - TAIL_BYTES)
        tail = os.pread(handle, size - start, start)
    complete = tail[: tail.rfind(b"\n") + 1]
    if len(complete) < len(tail):
        os.ftruncate(handle, start + len(complete))
    try:
        found = [json.loads(line) for line in complete.splitlines()[-2:]]
        if any(not isinstance(row["n"], int) or len(row["hash"]) != len(START) for row in found):
            raise ValueError("a line has no number or hash")
    except (ValueError, KeyError, TypeError):
        raise EnrollError("E310", "its last line cannot be read") from None
    before, last = [None, None, *found][-2:]
    return last, before, complete
