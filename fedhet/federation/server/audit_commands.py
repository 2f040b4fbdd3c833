"""The operator's commands on the audit log: `fedhet audit ...`."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.output import confirm, say, spoken
from fedhet.federation.server import registry_check
from fedhet.federation.server.audit_chain import HEAD, KEY_BYTES
from fedhet.federation.server.command_context import UNPROVED, audit_log_of, date_and_time
from fedhet.federation.server.operator import me
from fedhet.federation.server.registry import Registry


def audit_verify(home: Path, head: str, as_json: bool) -> None:
    """`fedhet audit verify`: verify the audit log, and compare the registry with it. `head` is a hash printed earlier,
    or ""."""
    with spoken(as_json):
        noted = head.strip().lower()
        if noted and not HEAD.fullmatch(noted):
            form = "64 hexadecimal digits, which `fedhet audit verify` prints after the word head"
            raise EnrollError("E319", f"--head {head} is not a head: {form}")
        audit, registry = audit_log_of(home), Registry(home / "registry.db")
        # The transaction locks out changes, so registry and log are of the same moment.
        with contextlib.closing(registry), registry.transaction() as session:
            verdict = audit.check(noted)
            if not verdict.lines:  # `fedhet ca init` writes the first line
                raise EnrollError("E310", "it is missing or empty", line=1)
            differences = registry_check.differences(session, audit)
        if differences:
            more = f"; and {len(differences) - 1} more: --json" if len(differences) > 1 else ""
            raise EnrollError("E340", differences[0] + more, differences=differences)
        values = {
            "lines": verdict.lines,
            "head": verdict.head,
            "broken_off": verdict.torn,
            "unproved": verdict.unproved,
        }
        anew = [UNPROVED % (verdict.unproved, verdict.unproved + 1)] if verdict.unproved else []
        torn = (
            ["the last line is incomplete: an append was interrupted; the next one removes it"] if verdict.torn else []
        )
        say(as_json, values, f"{verdict.lines} lines, all in order, and the registry agrees", *anew, *torn,
            f"head {verdict.head}")  # fmt: skip


def audit_rekey(home: Path, reason: str, yes: bool, as_json: bool) -> None:
    """`fedhet audit rekey`: continue a log whose key is lost or damaged with a new key."""
    with spoken(as_json):
        audit, registry = audit_log_of(home), Registry(home / "registry.db")
        with contextlib.closing(registry):
            verdict, why = audit.verify_without_key()
            with registry.transaction() as session:
                differences = registry_check.differences(session, audit, proved=False)
            faults = [f"line {verdict.bad}: {verdict.why}"] if verdict.bad else []
            confirm(
                yes, as_json, f"{why}; {verdict.lines} lines are in the log",
                *(f"found without the key: {fault}" for fault in faults + differences),
                *([] if faults or differences else ["without the key no fault is found, and the registry agrees"]),
                "from now on only a head stored elsewhere authenticates these lines",
            )  # fmt: skip
            key = secrets.token_bytes(KEY_BYTES)
            with registry.transaction() as session:  # first: if this is interrupted, the command is repeated
                waiting = registry_check.rekey(session, key)
            head = audit.rekey(key, me(), why=why, reason=reason, faults=faults + differences, waiting=waiting)
        values = {"unproved": verdict.lines, "faults": faults + differences, "head": head}
        say(as_json, values, f"the log is rekeyed: line {verdict.lines + 1} records it",
            UNPROVED % (verdict.lines, verdict.lines + 1), f"head {head}")  # fmt: skip


def audit_show(home: Path, as_json: bool) -> None:
    """`fedhet audit show`: print the audit log, unverified."""
    with spoken(as_json):
        rows, lines = list[dict[str, Any]](), list[str]()
        try:
            for r in audit_log_of(home).rows():
                values = f"{r['actor']}  {r['action']} {r['subject']}  {r['detail']}"
                lines.append(f"{r['n']:5} {date_and_time(r['time'])}  {values}")
                rows.append(r)
        except (ValueError, KeyError, TypeError, OverflowError):  # the file was edited
            if not as_json:
                say(False, None, *lines)
            raise EnrollError("E310", f"line {len(rows) + 1} cannot be read", line=len(rows) + 1) from None
        say(as_json, rows, *lines)
