"""What was done to the federation, and by whom: an append-only file whose every line holds the hash of the one before.

    hash(n) = HMAC-SHA256(key, digest(domain, hash(n - 1), canonical JSON of line n))

A change anywhere breaks the chain at that line, and without `audit.key` no line can be made that fits. Lines cut off
the end show against `audit.jsonl.head`, which is written after each line and signed by the same key. An append that
finds log and head in disagreement says so in a line of its own, which stays. Lines of an earlier version, before the
first that is keyed, hold the digest alone.

A log whose key is lost is keyed anew by a line (`rekey`) that is hashed with a new key and holds the SHA-256 of all
bytes before it. The lines before are from then on not proved by a key: they are as they were when that line was
written, in their order and with heads that follow each other, and what was altered in them until then shows only
against a head that was kept elsewhere or in the registry.

Not covered: who can read or replace the key can write the whole anew, and who puts back earlier copies of the log, its
head and the registry together shows nothing wrong. For both, keep a head elsewhere and hold the log to it:
`verify(head=...)`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki.canonical_json import canonical, digest
from fedhet.system.file_lock import acquired

DOMAIN = "fedhet.audit.v1"
START = "0" * 64
ALTERED = "altered"
"""The action of a line in which the log says that it was found altered."""
REKEYED = "rekey"
"""The action of a line from which on the log is proved by a new key."""
KEY_BYTES = 32
HEAD = re.compile(r"[0-9a-f]{64}", re.ASCII)
"""What a line's hash looks like."""
TAIL = 1 << 16
"""Bytes at the end in which a line is looked for that may have been written already."""
ANEW = "if there is no copy: fedhet audit rekey"
LOCK_S = 30.0
"""Seconds for another process to write its lines or to read the log."""


_Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check: lines read, the last hash, and the first bad line (from 1) with what is wrong.

    `torn`: bytes of an append that was broken off, for which no answer was given; the next append takes them away.
    `unproved`: lines at the beginning that the key does not prove, for the log was keyed anew after them.
    """

    lines: int
    head: str
    bad: int | None = None
    why: str = ""
    torn: int = 0
    unproved: int = 0


@dataclass(frozen=True, slots=True)
class Audit:
    """The log in a file. Several processes may append: each holds a lock for its lines."""

    path: Path
    clock: Callable[[], float] = time.time

    def append(self, actor: str, action: str, subject: str = "", **detail: Any) -> str:
        """Add a line and return its hash; it is on the disk when this returns. `detail` must not hold secrets.

        Raises OSError, and nothing is added then, E310 if the end of the log cannot be read, E320 if it stays locked,
        E324 if its key is gone or damaged.
        """
        return self.extend([self.line(actor, action, subject, **detail)])

    def line(self, actor: str, action: str, subject: str = "", **detail: Any) -> dict[str, Any]:
        """A line for `extend`, of now. Its `ref` is its own: it is written once however often it is given."""
        told = {"time": int(self.clock()), "actor": actor, "action": action, "subject": subject}
        return {**told, "detail": _plain(detail), "ref": secrets.token_hex(8)}

    def extend(self, lines: Iterable[Mapping[str, Any]]) -> str:
        """Add lines that are not there yet, in their order; the last hash. Raises what `append` does."""
        with self._locked() as handle:
            last, before, tail = _end_of(handle)
            key = self._key_for(last)
            number, previous = _place(last)
            fault = self._head_fault(last, before, key)
            if number and not fault and self._head_says()[0] != number:
                self._write_head(number, previous, key)  # so that it is never behind by more than one
            refs = _refs(tail)
            added = [self.line("audit", ALTERED, why=fault)] if fault else []
            for line in [*added, *(line for line in lines if line["ref"] not in refs)]:
                previous = self._write(handle, {**line, "n": number + 1, "prev": previous, "keyed": True}, key)
                number += 1
        return previous

    def rows(self) -> Iterator[dict[str, Any]]:
        """The whole lines as they are, unchecked."""
        if self.path.exists():
            with self.path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        yield json.loads(line)

    def verify(self, head: str = "") -> Verdict:
        """Check every line and the end. Never raises for a damaged log: the verdict names the first bad line.

        `head` is a hash that was noted earlier: a line must have it still. Raises EnrollError E324 if the key is gone
        or damaged, without which nothing can be said of the log.
        """
        if not self.path.exists():
            return Verdict(0, START, *((1, "the log is gone, its head is there") if self._head.exists() else ()))
        with self.path.open("rb") as file:
            _lock(file.fileno(), self.path, shared=True)  # log and head belong together
            lines, torn = _lines(file.read())
            key = self._key()
            if key is None and any(b'"keyed":true' in line for line in lines):
                raise self._no_key()
            return self._judged(lines, torn, head, key, _keyed_anew(lines))

    def _judged(self, lines: list[bytes], torn: int, head: str, key: bytes | None, anew: int) -> Verdict:
        """What is to be said of whole lines of which the key proves those from `anew` on (from 0)."""
        last, before, seen = None, None, not head
        for at, line in enumerate(lines):
            number, previous = _place(last)
            after_keyed = last is not None and "keyed" in last
            why = _fault(line, number + 1, previous, key, after_keyed, proved=at >= anew)
            if not why and 0 < at == anew and json.loads(line)["detail"].get("before") != _all_of(lines[:at]):
                why = "what is before it is not what it was when the log was keyed anew here"
            if why:
                return Verdict(number, previous, number + 1, why, torn, min(anew, number))
            last, before = json.loads(line), last
            seen = seen or last["hash"] == head
        number, previous = _place(last)
        why = self._head_fault(last, before, key, signed=anew < len(lines))
        if not why and not seen:
            why = "no line has the head that was given: the log was cut or written anew since"
        return Verdict(number, previous, number + 1 if why else None, why, torn, anew)

    def unkeyed(self) -> tuple[Verdict, str]:
        """Of a log whose key is lost: what can be said without it, and what is wrong with the key.

        Raises EnrollError E319 if the key proves the log's last line, or the log has no line that needs one; and what
        `append` does.
        """
        with self._locked() as handle:
            last = _end_of(handle)[0]
            try:
                key, why = self._key(), f"{self._key_file.name} is gone"
            except EnrollError as damaged:
                if damaged.code != "E324":
                    raise
                key, why = None, damaged.detail
            else:
                if last is None or "keyed" not in last:
                    raise EnrollError("E319", "no line of the log needs a key: the next change makes one")
                if key is not None:
                    row = {name: value for name, value in last.items() if name != "hash"}
                    if hmac.compare_digest(_hash(str(row.get("prev")), row, key), str(last["hash"])):
                        raise EnrollError("E319", f"{self._key_file} proves the log: nothing is to be keyed anew")
                    why = f"{self._key_file.name} is another one's"
            lines, torn = _lines(self.path.read_bytes())
            return self._judged(lines, torn, "", None, len(lines)), why

    def rekey(self, key: bytes, actor: str, **detail: Any) -> str:
        """Key the log anew with so many random bytes as `KEY_BYTES` says; the hash of the line that says so.

        The key comes last: if this is broken off there is none, and it is to be called again. Raises what `append`
        does.
        """
        with self._locked() as handle:
            number, previous = _place(_end_of(handle)[0])
            lines, _ = _lines(self.path.read_bytes())
            line = self.line(actor, REKEYED, self._key_file.name, **detail, before=_all_of(lines))
            told = self._write(handle, {**line, "n": number + 1, "prev": previous, "keyed": True}, key)
            private_files.write_file(self._key_file, key)
            return told

    def check(self, head: str = "") -> Verdict:
        """`verify`, raising EnrollError E310 if the log was altered."""
        verdict = self.verify(head)
        if verdict.bad is not None:
            raise EnrollError("E310", f"line {verdict.bad}: {verdict.why}", line=verdict.bad)
        return verdict

    def sign(self, content: bytes) -> bytes:
        """The key's mark on something that waits to become a line. Raises E324 if the key is gone or damaged."""
        with self._locked() as handle:
            key = self._key_for(_end_of(handle)[0])
        return mark(key, content)

    def ready(self) -> None:
        """Before something is done that a line is to tell of afterwards: raises what would keep the line out."""
        with self._locked() as handle:
            self._key_for(_end_of(handle)[0])

    @property
    def is_keyed(self) -> bool:
        """Whether there is a key: the log of an earlier version gets one with its next line."""
        return self._key_file.exists()

    @property
    def _head(self) -> Path:
        return self.path.with_name(self.path.name + ".head")

    @property
    def _key_file(self) -> Path:
        return self.path.with_suffix(".key")

    def _key(self) -> bytes | None:
        """The key, or None if there is none. Raises EnrollError E324."""
        if not self._key_file.exists():
            return None
        key = private_files.read_private(self._key_file)
        if len(key) != KEY_BYTES:
            held = f"{len(key)} bytes, not {KEY_BYTES}" if key else "it is empty"
            raise EnrollError("E324", f"{self._key_file}: {held}; {ANEW}")
        return key

    def _key_for(self, last: _Row | None) -> bytes:
        """The key, made now if the log has no line that needs one. Raises EnrollError E324."""
        key = self._key()
        if key is None:
            if last is not None and "keyed" in last:
                raise self._no_key()
            key = secrets.token_bytes(KEY_BYTES)
            private_files.write_file(self._key_file, key)
        return key

    def _no_key(self) -> EnrollError:
        return EnrollError("E324", f"{self._key_file} is gone; {ANEW}")

    def _head_says(self) -> tuple[int, str, str]:
        """Number and hash of the line it was written for, and its signature; 0 if it is missing or no head."""
        try:
            count, noted, *mac = self._head.read_text().split()
            return int(count), noted, "".join(mac)
        except (FileNotFoundError, ValueError):
            return 0, "", ""

    def _head_fault(self, last: _Row | None, before: _Row | None, key: bytes | None, *, signed: bool = True) -> str:
        """Why head and log do not belong together, or "". One line more than the head is what a power cut leaves;
        `signed`: the head's signature can be judged."""
        (number, _), (count, noted, mac) = _place(last), self._head_says()
        at = last if count == number else before
        if number not in (count, count + 1):
            return f"{number} lines, but the head says {count}" if count else "the head is missing or cannot be read"
        if at is None:
            return ""
        if noted != at["hash"]:
            return "its hash is not the head's"
        if signed and (mac or "keyed" in at) and (key is None or not hmac.compare_digest(mac, _mac(key, count, noted))):
            return "the head is not signed by the key"
        return ""

    def _write(self, handle: int, body: Mapping[str, Any], key: bytes) -> str:
        """One line at the end and its head, or nothing. Returns the line's hash."""
        hashed = _hash(str(body["prev"]), body, key)
        content, begin = canonical({**body, "hash": hashed}) + b"\n", os.lseek(handle, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(content):
                written += os.write(handle, content[written:])
            os.fsync(handle)
            self._write_head(body["n"], hashed, key)
        except OSError as error:  # what it tells of is not done either
            os.ftruncate(handle, begin)
            raise OSError(error.errno, error.strerror, error.filename or str(self.path)) from None
        return hashed

    def _write_head(self, number: int, line_hash: str, key: bytes) -> None:
        private_files.write_file(self._head, f"{number} {line_hash} {_mac(key, number, line_hash)}\n")

    @contextmanager
    def _locked(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(handle, self.path)
            yield handle
        finally:
            os.close(handle)


def _lock(handle: int, path: Path, *, shared: bool = False) -> None:
    """Raises EnrollError E320 if another process, which may be stopped, keeps the log locked for `LOCK_S`."""
    if not acquired(handle, LOCK_S, shared=shared):
        raise EnrollError("E320", f"{path} was locked for {LOCK_S:g} s")


def _end_of(handle: int) -> tuple[_Row | None, _Row | None, bytes]:
    """The last whole line and the one before it, and the whole lines of the tail; a torn end is cut off.

    Raises EnrollError E310 if they cannot be read.
    """
    size = os.lseek(handle, 0, os.SEEK_END)
    tail, start = b"", size
    while start and (len(tail) < TAIL or tail.count(b"\n") < 4):
        start = max(0, start - TAIL)
        tail = os.pread(handle, size - start, start)
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        os.ftruncate(handle, start + len(whole))
    try:
        found = [json.loads(line) for line in whole.splitlines()[-2:]]
        if any(not isinstance(row["n"], int) or len(row["hash"]) != len(START) for row in found):
            raise ValueError("a line without its number or hash")
    except (ValueError, KeyError, TypeError):
        raise EnrollError("E310", "its last line cannot be read") from None
    before, last = [None, None, *found][-2:]
    return last, before, whole


def _place(last: _Row | None) -> tuple[int, str]:
    """Number and hash of a line, of which there may be none yet."""
    return (0, START) if last is None else (last["n"], last["hash"])


def _refs(tail: bytes) -> set[str]:
    """The references of the lines in a tail; its first line may be cut."""
    found = set()
    for line in tail.splitlines():
        try:
            found.add(str(json.loads(line).get("ref", "")))
        except ValueError:
            continue
    return found


def _hash(previous: str, body: Mapping[str, Any], key: bytes | None) -> str:
    plain = digest(DOMAIN, bytes.fromhex(previous), canonical(body))
    return hmac.digest(key, plain, "sha256").hex() if key is not None else plain.hex()


def _mac(key: bytes, number: int, line_hash: str) -> str:
    return hmac.digest(key, f"head {number} {line_hash}".encode(), "sha256").hex()


def mark(key: bytes, content: bytes) -> bytes:
    """What proves that who has the key let something wait to become a line."""
    return hmac.digest(key, b"waits" + content, "sha256")


def _lines(content: bytes) -> tuple[list[bytes], int]:
    """The whole lines of a log, and the bytes of a torn one after them."""
    end = content.rfind(b"\n") + 1
    return content[:end].splitlines(), len(content) - end


def _keyed_anew(lines: list[bytes]) -> int:
    """The place, from 0, of the last line from which on the log was keyed anew; 0 if it never was."""
    for at in range(len(lines) - 1, 0, -1):
        if REKEYED.encode() in lines[at]:  # few lines are worth parsing twice
            try:
                if json.loads(lines[at])["action"] == REKEYED:
                    return at
            except (ValueError, KeyError, TypeError):
                continue
    return 0


def _all_of(lines: list[bytes]) -> str:
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def _fault(line: bytes, number: int, previous: str, key: bytes | None, keyed: bool, *, proved: bool = True) -> str:
    """What is wrong with a line that is to be `number` and follow `previous`; `keyed`: so was the one before it;
    `proved`: it was hashed with this key, if with any."""
    try:
        row = json.loads(line)
        found = row.pop("hash")
        if row["n"] != number:
            return f"it is numbered {row['n']}"
        if row["prev"] != previous:
            return "it does not follow the line before"
        if "keyed" not in row and keyed:
            return "it is not keyed, and the line before is"
        if "keyed" in row and proved and key is None:
            return "the key that would prove it is gone"
        if "keyed" in row and not proved:
            expected = str(found) if len(bytes.fromhex(found)) == len(START) // 2 else ""
        else:
            expected = _hash(previous, row, key if "keyed" in row else None)
        if not hmac.compare_digest(expected, str(found)) or canonical({**row, "hash": found}) != line:
            return "its content does not match its hash"
        if row["action"] == ALTERED:
            return f"the log was found altered here: {row['detail'].get('why', '')}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {type(error).__name__}"
    return ""


def _plain(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in detail.items() if v is not None}
