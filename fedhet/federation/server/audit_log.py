"""The audit log: an append-only file of every change to the federation, each line chained to the hash of the one
before.

    hash(n) = HMAC-SHA256(key, digest(domain, hash(n - 1), canonical JSON of line n))

A changed line breaks the chain there, and without `audit.key` nobody can compute a hash that fits. Lines removed from
the end are detected by `audit.jsonl.head`, which is written after each line and authenticated with the same key. An
append that finds log and head in disagreement records that in a line of its own, which stays. Lines of an earlier
version, before the first keyed line, have an unkeyed digest.

If the key is lost, `rekey` appends a line that is hashed with a new key and contains the SHA-256 of all bytes before
it. The earlier lines are then no longer authenticated by a key: the new line proves their content at that time and
their order, but an alteration made before it is detected only by a head that is stored elsewhere, or by the registry.

Not covered: an attacker who can read or replace the key can rewrite the log, and one who restores earlier copies of
log, head and registry together leaves no trace. Against both, store a head elsewhere and compare: `verify(head=...)`.
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
        """Append a line and return its hash; the line is on disk when this returns. `detail` must not contain secrets.

        Raises OSError (nothing is appended then), and EnrollError E310 if the end of the log cannot be parsed, E320 if
        it stays locked, E324 if its key is missing or damaged."""
        return self.extend([self.line(actor, action, subject, **detail)])

    def line(self, actor: str, action: str, subject: str = "", **detail: Any) -> dict[str, Any]:
        """A line for `extend`, dated now. Its random `ref` makes `extend` idempotent: the line is written once."""
        fields = {"time": int(self.clock()), "actor": actor, "action": action, "subject": subject}
        return {**fields, "detail": _without_none(detail), "ref": secrets.token_hex(8)}

    def extend(self, lines: Iterable[Mapping[str, Any]]) -> str:
        """Append those lines that are not in the log yet, in order; returns the last hash. Raises what `append`
        raises."""
        with self.locked() as handle:
            last, before, tail = last_lines(handle)
            key = self.key_for(last)
            number, previous = audit_chain.number_and_hash(last)
            fault = self.head_fault(last, before, key)
            if number and not fault and self.read_head()[0] != number:
                self.write_head(number, previous, key)  # the head is never more than one line behind
            refs = audit_chain.references(tail)
            added = [self.line("audit", ALTERED, why=fault)] if fault else []
            for line in [*added, *(line for line in lines if line["ref"] not in refs)]:
                previous = self.write_line(handle, {**line, "n": number + 1, "prev": previous, "keyed": True}, key)
                number += 1
        return previous

    def rows(self) -> Iterator[dict[str, Any]]:
        """The complete lines, parsed and not verified."""
        if self.path.exists():
            with self.path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        yield json.loads(line)

    def verify(self, head: str = "") -> Verdict:
        """Verify every line, and the end against the head. A damaged log does not raise: the verdict names the first
        bad line.

        `head` is a hash recorded earlier, which some line must still have. Raises EnrollError E324 if the key is
        missing or damaged, because nothing can be verified without it."""
        if not self.path.exists():
            return Verdict(0, START, *((1, "the log is missing, its head is there") if self.head_file.exists() else ()))
        with self.path.open("rb") as file:
            lock(file.fileno(), self.path, shared=True)  # log and head belong together
            lines, torn = audit_chain.complete_lines(file.read())
            key = self.read_key()
            if key is None and any(b'"keyed":true' in line for line in lines):
                raise self.missing_key()
            return self._verdict(lines, torn, head, key, audit_chain.last_rekey(lines))

    def _verdict(self, lines: list[bytes], torn: int, head: str, key: bytes | None, rekeyed_at: int) -> Verdict:
        """The verdict on complete lines, of which `key` authenticates those from index `rekeyed_at` on."""
        last, before, head_found = None, None, not head
        for at, line in enumerate(lines):
            number, previous = audit_chain.number_and_hash(last)
            after_keyed = last is not None and "keyed" in last
            why = audit_chain.line_fault(line, number + 1, previous, key, after_keyed, proved=at >= rekeyed_at)
            if (
                not why
                and 0 < at == rekeyed_at
                and json.loads(line)["detail"].get("before") != audit_chain.digest_of(lines[:at])
            ):
                why = "the lines before it are not those that were there when the log was rekeyed here"
            if why:
                return Verdict(number, previous, number + 1, why, torn, min(rekeyed_at, number))
            last, before = json.loads(line), last
            head_found = head_found or last["hash"] == head
        number, previous = audit_chain.number_and_hash(last)
        why = self.head_fault(last, before, key, signed=rekeyed_at < len(lines))
        if not why and not head_found:
            why = "no line has the given head: the log was truncated or rewritten since"
        return Verdict(number, previous, number + 1 if why else None, why, torn, rekeyed_at)

    def verify_without_key(self) -> tuple[Verdict, str]:
        """Verify a log whose key is lost, as far as that is possible; returns the verdict and what is wrong with the
        key.

        Raises EnrollError E319 if the key authenticates the last line, or no line is keyed; and what `append` raises.
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
                    raise EnrollError("E319", "no line of the log is keyed: the next change makes a key")
                if key is not None:
                    row = {name: value for name, value in last.items() if name != "hash"}
                    if hmac.compare_digest(audit_chain.line_hash(str(row.get("prev")), row, key), str(last["hash"])):
                        raise EnrollError(
                            "E319", f"{self.key_file} authenticates the log: there is no need to rekey it"
                        )
                    why = f"{self.key_file.name} does not belong to this log"
            lines, torn = audit_chain.complete_lines(self.path.read_bytes())
            return self._verdict(lines, torn, "", None, len(lines)), why

    def rekey(self, key: bytes, actor: str, **detail: Any) -> str:
        """Append a `rekey` line hashed with `key` (`KEY_BYTES` random bytes), then store the key; returns the line's
        hash.

        If this is interrupted the key is not stored, and the call must be repeated. Raises what `append` raises.
        """
        with self.locked() as handle:
            number, previous = audit_chain.number_and_hash(last_lines(handle)[0])
            lines, _ = audit_chain.complete_lines(self.path.read_bytes())
            line = self.line(actor, REKEYED, self.key_file.name, **detail, before=audit_chain.digest_of(lines))
            hashed = self.write_line(handle, {**line, "n": number + 1, "prev": previous, "keyed": True}, key)
            private_files.write_file(self.key_file, key)
            return hashed

    def check(self, head: str = "") -> Verdict:
        """`verify`, raising EnrollError E310 if the log was altered."""
        verdict = self.verify(head)
        if verdict.bad is not None:
            raise EnrollError("E310", f"line {verdict.bad}: {verdict.why}", line=verdict.bad)
        return verdict

    def sign(self, content: bytes) -> bytes:
        """HMAC over a line that waits in the registry. Raises EnrollError E324 if the key is missing or damaged."""
        with self.locked() as handle:
            key = self.key_for(last_lines(handle)[0])
        return audit_chain.mark(key, content)

    def check_writable(self) -> None:
        """Raises what `append` would raise; called before a change that is logged afterwards."""
        with self.locked() as handle:
            self.key_for(last_lines(handle)[0])


def _without_none(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in detail.items() if v is not None}
