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

import hmac
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server import audit_chain
from fedhet.federation.server.audit_chain import ALTERED, REKEYED, START, Verdict
from fedhet.federation.server.audit_file import AuditFile, last_lines, lock


@dataclass(frozen=True, slots=True)
class Audit(AuditFile):
    """The log in a file. Several processes may append: each holds a lock for its lines."""

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
        with self.locked() as handle:
            last, before, tail = last_lines(handle)
            key = self.key_for(last)
            number, previous = audit_chain.number_and_hash(last)
            fault = self.head_fault(last, before, key)
            if number and not fault and self.read_head()[0] != number:
                self.write_head(number, previous, key)  # so that it is never behind by more than one
            refs = audit_chain.references(tail)
            added = [self.line("audit", ALTERED, why=fault)] if fault else []
            for line in [*added, *(line for line in lines if line["ref"] not in refs)]:
                previous = self.write_line(handle, {**line, "n": number + 1, "prev": previous, "keyed": True}, key)
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
            return Verdict(0, START, *((1, "the log is gone, its head is there") if self.head_file.exists() else ()))
        with self.path.open("rb") as file:
            lock(file.fileno(), self.path, shared=True)  # log and head belong together
            lines, torn = audit_chain.complete_lines(file.read())
            key = self.read_key()
            if key is None and any(b'"keyed":true' in line for line in lines):
                raise self.missing_key()
            return self._judged(lines, torn, head, key, audit_chain.last_rekey(lines))

    def _judged(self, lines: list[bytes], torn: int, head: str, key: bytes | None, anew: int) -> Verdict:
        """What is to be said of whole lines of which the key proves those from `anew` on (from 0)."""
        last, before, seen = None, None, not head
        for at, line in enumerate(lines):
            number, previous = audit_chain.number_and_hash(last)
            after_keyed = last is not None and "keyed" in last
            why = audit_chain.line_fault(line, number + 1, previous, key, after_keyed, proved=at >= anew)
            if (
                not why
                and 0 < at == anew
                and json.loads(line)["detail"].get("before") != audit_chain.digest_of(lines[:at])
            ):
                why = "what is before it is not what it was when the log was keyed anew here"
            if why:
                return Verdict(number, previous, number + 1, why, torn, min(anew, number))
            last, before = json.loads(line), last
            seen = seen or last["hash"] == head
        number, previous = audit_chain.number_and_hash(last)
        why = self.head_fault(last, before, key, signed=anew < len(lines))
        if not why and not seen:
            why = "no line has the head that was given: the log was cut or written anew since"
        return Verdict(number, previous, number + 1 if why else None, why, torn, anew)

    def unkeyed(self) -> tuple[Verdict, str]:
        """Of a log whose key is lost: what can be said without it, and what is wrong with the key.

        Raises EnrollError E319 if the key proves the log's last line, or the log has no line that needs one; and what
        `append` does.
        """
        with self.locked() as handle:
            last = last_lines(handle)[0]
            try:
                key, why = self.read_key(), f"{self.key_file.name} is gone"
            except EnrollError as damaged:
                if damaged.code != "E324":
                    raise
                key, why = None, damaged.detail
            else:
                if last is None or "keyed" not in last:
                    raise EnrollError("E319", "no line of the log needs a key: the next change makes one")
                if key is not None:
                    row = {name: value for name, value in last.items() if name != "hash"}
                    if hmac.compare_digest(audit_chain.line_hash(str(row.get("prev")), row, key), str(last["hash"])):
                        raise EnrollError("E319", f"{self.key_file} proves the log: nothing is to be keyed anew")
                    why = f"{self.key_file.name} is another one's"
            lines, torn = audit_chain.complete_lines(self.path.read_bytes())
            return self._judged(lines, torn, "", None, len(lines)), why

    def rekey(self, key: bytes, actor: str, **detail: Any) -> str:
        """Key the log anew with so many random bytes as `KEY_BYTES` says; the hash of the line that says so.

        The key comes last: if this is broken off there is none, and it is to be called again. Raises what `append`
        does.
        """
        with self.locked() as handle:
            number, previous = audit_chain.number_and_hash(last_lines(handle)[0])
            lines, _ = audit_chain.complete_lines(self.path.read_bytes())
            line = self.line(actor, REKEYED, self.key_file.name, **detail, before=audit_chain.digest_of(lines))
            told = self.write_line(handle, {**line, "n": number + 1, "prev": previous, "keyed": True}, key)
            private_files.write_file(self.key_file, key)
            return told

    def check(self, head: str = "") -> Verdict:
        """`verify`, raising EnrollError E310 if the log was altered."""
        verdict = self.verify(head)
        if verdict.bad is not None:
            raise EnrollError("E310", f"line {verdict.bad}: {verdict.why}", line=verdict.bad)
        return verdict

    def sign(self, content: bytes) -> bytes:
        """The key's mark on something that waits to become a line. Raises E324 if the key is gone or damaged."""
        with self.locked() as handle:
            key = self.key_for(last_lines(handle)[0])
        return audit_chain.mark(key, content)

    def ready(self) -> None:
        """Before something is done that a line is to tell of afterwards: raises what would keep the line out."""
        with self.locked() as handle:
            self.key_for(last_lines(handle)[0])


def _plain(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in detail.items() if v is not None}
