"""The hash chain of the audit log: how a line is hashed, and why a line does not fit. No files here.

hash(n) = HMAC-SHA256(key, digest(domain, hash(n - 1), canonical JSON of line n))"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from fedhet.federation.pki.canonical_json import canonical, digest

DOMAIN = "fedhet.audit.v1"


START = "0" * 64


ALTERED = "altered"
"""The action of a line that records that the log was found altered."""
REKEYED = "rekey"
"""The action of a line from which on the log is authenticated by a new key."""
KEY_BYTES = 32


HEAD = re.compile(r"[0-9a-f]{64}", re.ASCII)
"""The form of a line's hash: SHA-256 in hexadecimal."""


LogLine: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying a log: lines read, the last hash, and the first bad line (from 1) with the reason.

    `torn`: bytes of an incomplete last line, left by an interrupted append; the next append removes them. `unproved`:
    lines at the beginning that the present key does not authenticate, because the log was rekeyed after them.
    """

    lines: int
    head: str
    bad: int | None = None
    why: str = ""
    torn: int = 0
    unproved: int = 0


def number_and_hash(last: LogLine | None) -> tuple[int, str]:
    """Number and hash of the last line; 0 and `START` for an empty log."""
    return (0, START) if last is None else (last["n"], last["hash"])


def references(tail: bytes) -> set[str]:
    """The `ref` fields of the lines in the last bytes of a log, whose first line may be incomplete."""
    found = set()
    for line in tail.splitlines():
        try:
            found.add(str(json.loads(line).get("ref", "")))
        except ValueError:
            continue
    return found


def line_hash(previous: str, body: Mapping[str, Any], key: bytes | None) -> str:
    plain = digest(DOMAIN, bytes.fromhex(previous), canonical(body))
    return hmac.digest(key, plain, "sha256").hex() if key is not None else plain.hex()


def head_mac(key: bytes, number: int, hashed: str) -> str:
    return hmac.digest(key, f"head {number} {hashed}".encode(), "sha256").hex()


def mark(key: bytes, content: bytes) -> bytes:
    """HMAC of a line that waits in the registry: proof that a holder of the key queued it."""
    return hmac.digest(key, b"waits" + content, "sha256")


def complete_lines(content: bytes) -> tuple[list[bytes], int]:
    """The complete lines of a log, and the number of bytes of an incomplete one after them."""
    end = content.rfind(b"\n") + 1
    return content[:end].splitlines(), len(content) - end


def last_rekey(lines: list[bytes]) -> int:
    """Index, from 0, of the last `rekey` line; 0 if the log was never rekeyed."""
    for at in range(len(lines) - 1, 0, -1):
        if REKEYED.encode() in lines[at]:  # a cheap test: few lines are parsed twice
            try:
                if json.loads(lines[at])["action"] == REKEYED:
                    return at
            except (ValueError, KeyError, TypeError):
                continue
    return 0


def digest_of(lines: list[bytes]) -> str:
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def line_fault(line: bytes, number: int, previous: str, key: bytes | None, keyed: bool, *, proved: bool = True) -> str:
    """Why a line is not valid as number `number` after the hash `previous`; "" if it is.

    `keyed`: the line before has a keyed hash. `proved`: `key` is the one that this line was hashed with, if any was.
    """
    try:
        row = json.loads(line)
        found = row.pop("hash")
        if row["n"] != number:
            return f"it is numbered {row['n']}"
        if row["prev"] != previous:
            return "it does not follow the line before it"
        if "keyed" not in row and keyed:
            return "it is not keyed, and the line before is"
        if "keyed" in row and proved and key is None:
            return "the key that authenticates it is gone"
        if "keyed" in row and not proved:
            expected = str(found) if len(bytes.fromhex(found)) == len(START) // 2 else ""
        else:
            expected = line_hash(previous, row, key if "keyed" in row else None)
        if not hmac.compare_digest(expected, str(found)) or canonical({**row, "hash": found}) != line:
            return "its content does not match its hash"
        if row["action"] == ALTERED:
            return f"the log was found altered here: {row['detail'].get('why', '')}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {type(error).__name__}"
    return ""
