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
"""The action of a line in which the log says that it was found altered."""


REKEYED = "rekey"
"""The action of a line from which on the log is proved by a new key."""


KEY_BYTES = 32


HEAD = re.compile(r"[0-9a-f]{64}", re.ASCII)
"""What a line's hash looks like."""


LogLine: TypeAlias = dict[str, Any]


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


def number_and_hash(last: LogLine | None) -> tuple[int, str]:
    """Number and hash of a line, of which there may be none yet."""
    return (0, START) if last is None else (last["n"], last["hash"])


def references(tail: bytes) -> set[str]:
    """The references of the lines in a tail; its first line may be cut."""
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
    """What proves that who has the key let something wait to become a line."""
    return hmac.digest(key, b"waits" + content, "sha256")


def complete_lines(content: bytes) -> tuple[list[bytes], int]:
    """The whole lines of a log, and the bytes of a torn one after them."""
    end = content.rfind(b"\n") + 1
    return content[:end].splitlines(), len(content) - end


def last_rekey(lines: list[bytes]) -> int:
    """The place, from 0, of the last line from which on the log was keyed anew; 0 if it never was."""
    for at in range(len(lines) - 1, 0, -1):
        if REKEYED.encode() in lines[at]:  # few lines are worth parsing twice
            try:
                if json.loads(lines[at])["action"] == REKEYED:
                    return at
            except (ValueError, KeyError, TypeError):
                continue
    return 0


def digest_of(lines: list[bytes]) -> str:
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def line_fault(line: bytes, number: int, previous: str, key: bytes | None, keyed: bool, *, proved: bool = True) -> str:
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
            expected = line_hash(previous, row, key if "keyed" in row else None)
        if not hmac.compare_digest(expected, str(found)) or canonical({**row, "hash": found}) != line:
            return "its content does not match its hash"
        if row["action"] == ALTERED:
            return f"the log was found altered here: {row['detail'].get('why', '')}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {type(error).__name__}"
    return ""
