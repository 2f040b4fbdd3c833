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
    """Check the audit log, and the registry against it. `head` is a hash that was printed earlier, or ""."""
    with spoken(as_json):
        noted = head.strip().lower()
        if noted and not HEAD.fullmatch(noted):
            form = "64 hexadecimal digits, which `fedhet audit verify` prints behind the word head"
            raise EnrollError("E319", f"--head {head} is not a head: {form}")
        audit, registry = audit_log_of(home), Registry(home / "registry.db")
        # Nobody changes a client meanwhile, so neither is ahead of the other.
        with contextlib.closing(registry), registry.transaction() as session:
            verdict = audit.check(noted)
            if not verdict.lines:  # there is one from the founding on
                raise EnrollError("E310", "it is gone", line=1)
            differ = registry_check.differences(session, audit)
        if differ:
            more = f"; and {len(differ) - 1} more: --json" if len(differ) > 1 else ""
            raise EnrollError("E340", differ[0] + more, differences=differ)
        told = {"lines": verdict.lines, "head": verdict.head, "broken_off": verdict.torn, "unproved": verdict.unproved}
        anew = [UNPROVED % (verdict.unproved, verdict.unproved + 1)] if verdict.unproved else []
        torn = ["an append was broken off at the end; the next one takes its rest away"] if verdict.torn else []
        say(as_json, told, f"{verdict.lines} lines, all in order, and the registry says the same", *anew, *torn,
            f"head {verdict.head}")  # fmt: skip


def audit_rekey(home: Path, reason: str, yes: bool, as_json: bool) -> None:
    """Key a log anew whose key is lost or damaged, so that the federation can be changed again."""
    with spoken(as_json):
        audit, registry = audit_log_of(home), Registry(home / "registry.db")
        with contextlib.closing(registry):
            verdict, why = audit.unkeyed()
            with registry.transaction() as session:
                differ = registry_check.differences(session, audit, proved=False)
            faults = [f"line {verdict.bad}: {verdict.why}"] if verdict.bad else []
            confirm(
                yes, as_json, f"{why}; {verdict.lines} lines are in the log",
                *(f"found without the key: {fault}" for fault in faults + differ),
                *([] if faults or differ else ["without the key all is in order, and the registry says the same"]),
                "from now on nothing proves these lines but a head that you kept elsewhere",
            )  # fmt: skip
            key = secrets.token_bytes(KEY_BYTES)
            with registry.transaction() as session:  # first: if this is broken off, it is done again
                waiting = registry_check.rekey(session, key)
            head = audit.rekey(key, me(), why=why, reason=reason, faults=faults + differ, waiting=waiting)
        told = {"unproved": verdict.lines, "faults": faults + differ, "head": head}
        say(as_json, told, f"the log is keyed anew: line {verdict.lines + 1} says so",
            UNPROVED % (verdict.lines, verdict.lines + 1), f"head {head}")  # fmt: skip


def audit_show(home: Path, as_json: bool) -> None:
    """Print the audit log."""
    with spoken(as_json):
        rows, lines = list[dict[str, Any]](), list[str]()
        try:
            for r in audit_log_of(home).rows():
                told = f"{r['actor']}  {r['action']} {r['subject']}  {r['detail']}"
                lines.append(f"{r['n']:5} {date_and_time(r['time'])}  {told}")
                rows.append(r)
        except (ValueError, KeyError, TypeError, OverflowError):  # somebody wrote into it
            if not as_json:
                say(False, None, *lines)
            raise EnrollError("E310", f"line {len(rows) + 1} cannot be read", line=len(rows) + 1) from None
        say(as_json, rows, *lines)
