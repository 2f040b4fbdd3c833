"""The operator's commands."""

from __future__ import annotations

import contextlib
import csv
import io
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from fedhet.display import log_to_terminal, shown
from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError, unwritable
from fedhet.federation.common.exclusive import alone
from fedhet.federation.common.output import cells, confirm, put, say, spoken, table_of
from fedhet.federation.common.process_supervisor import close_memory
from fedhet.federation.pki import operator_key
from fedhet.federation.pki.passphrase import obtain
from fedhet.federation.server import client_profiles, control_socket, offline_approval, registry_check, schema
from fedhet.federation.server.audit_log import HEAD, KEY_BYTES, Audit
from fedhet.federation.server.operator import Federation, me
from fedhet.federation.server.registry import Client, Registry
from fedhet.federation.server.serve import LOCK, Server

UNENCRYPTED = """NOT ENCRYPTED: the keys in %s
  Any program of this account, a backup or a stolen disk gives them away, and who has them lets devices in and
  poses as this server. To encrypt them: fedhet ca passphrase"""


FOLLOWED = (
    "devices follow with their next job or the server's next answer, and then refuse orders of the key before: "
    "sign runs that go on again with fedhet submit --resume RUN_DIR"
)
UNPROVED = (
    "lines 1 to %d are no longer proved by the key: the log was keyed anew in line %d; they are as they were then"
)


@contextlib.contextmanager
def _opened(home: Path, as_json: bool, passphrase: Path | None = None) -> Iterator[Federation]:
    with spoken(as_json), contextlib.closing(Federation(home)) as federation:
        federation.authority.lock.ask = partial(obtain, passphrase)
        yield federation


def ca_init(
    home: Path, federation: str, endpoint: str, hosts: Sequence[str], passphrase: Path | None, encrypted: bool,
    root: Path | None, signer: str, as_json: bool,
) -> None:  # fmt: skip
    """Found a federation."""
    with spoken(as_json):
        if encrypted and (home / "ca" / "ca.json").exists():  # or a passphrase would be asked for in vain
            raise EnrollError("E306", f"{home / 'ca'} holds an authority already")
        secret = _chosen(passphrase) if encrypted else ""
        made = Federation.create(
            home, federation, endpoint, hosts, passphrase=secret, root=root, signer=shlex.split(signer)
        )
        mark = made.authority.fingerprint
        made.close()
        told = {"federation": federation, "endpoint": endpoint, "root_sha256": mark, "folder": str(home)}
        if not encrypted:
            print(UNENCRYPTED % (home / "ca"), file=sys.stderr)
        keep = "" if root else f"keep {home / 'ca' / 'root.key'} off this machine; only `fedhet ca rotate` needs it"
        say(as_json, told, f"federation {federation} at {endpoint}", f"root SHA-256 {mark}", *([keep] if keep else []))


def _chosen(passphrase: Path | None) -> str:
    """A new passphrase. Raises EnrollError E322, which says that there may be none if one wants it so."""
    try:
        return obtain(passphrase, what="A passphrase for the keys", again=True)
    except EnrollError as error:
        if error.code != "E322":
            raise
        raise EnrollError("E322", f"{error.detail}; or --no-passphrase leaves them readable") from None


def ca_passphrase(home: Path, passphrase: Path | None, new: Path | None, as_json: bool) -> None:
    """Encrypt the keys, or give them another passphrase."""
    with _opened(home, as_json) as federation:
        authority, clear = federation.authority, not federation.authority.lock.exists
        federation.audit.ready()
        old = obtain(passphrase, what="The present passphrase") if authority.asks else ""
        given = obtain(new, what="The new passphrase", again=True, variable="FEDHET_NEW_PASSPHRASE")
        done = authority.encrypt(old, given)
        federation.audit.append(me(), "passphrase", "", files=done)
        away = "root.key" not in done and not authority.about.signer
        say(as_json, {"files": done}, f"encrypted: {', '.join(done)}",
            *(["root.key is elsewhere: it keeps what passphrase it has"] if away else []),
            *(["copies and backups made before hold the keys in the clear: replace them with fedhet ca rotate",
               "restart fedhet serve, which cannot read them now"] if clear else []))  # fmt: skip


def _of_root(own: bool, opener: str) -> str:
    """The passphrase of root.key: its own, or that of the other keys."""
    return obtain(None, what="Passphrase of root.key", variable="FEDHET_ROOT_PASSPHRASE") if own else opener


def ca_rotate(
    home: Path, root: bool, compromised: bool, days: float, passphrase: Path | None, own: bool, as_json: bool
) -> None:
    """Replace the issuing key, or root and issuing key; have devices refuse the earlier ones if they were stolen."""
    with _opened(home, as_json) as federation:
        federation.audit.ready()
        opener = obtain(passphrase) if federation.authority.asks else ""
        federation.authority.lock.ask = lambda: opener
        secret = _of_root(own, opener)
        if root:
            federation.authority.rotate_root(time.time(), secret, compromised=compromised)
            mark = federation.authority.fingerprint
            federation.audit.append(me(), "rotate", "root", root=mark, compromised=compromised)
            say(as_json, {"root_sha256": mark}, f"new root, signed by the old one; SHA-256 {mark}",
                "devices learn it when they next ask; restart fedhet serve now")  # fmt: skip
            return
        made = federation.authority.rotate(time.time(), secret, compromised=compromised, days=days)
        serial = f"{made.serial_number:x}"
        federation.audit.append(me(), "rotate", "issuing", serial=serial, compromised=compromised)
        until = _day(made.not_valid_after_utc.timestamp())
        told = ["devices refuse the earlier ones as soon as they get an answer from this federation's server",
                "one that is kept from it does so when they expire; revoke clients whose keys were stolen as well",
                ] if compromised else []  # fmt: skip
        say(as_json, {"serial": serial, "not_after": until, "compromised": compromised},
            f"new issuing key, good until {until}", *told)  # fmt: skip


def ca_rotate_operator(
    home: Path, compromised: bool, passphrase: Path | None, own: bool, yes: bool, as_json: bool
) -> None:
    """Replace the key that signs what devices build; if it was stolen or lost, the root names the new one."""
    with _opened(home, as_json) as federation:
        authority = federation.authority
        federation.audit.ready()
        by = "the root, in a new term: devices refuse what the earlier keys sign" if compromised else "the present one"
        confirm(yes, as_json, f"a new operator key, named by {by}", FOLLOWED)
        opener = obtain(passphrase) if (authority.asks if compromised else authority.lock.exists) else ""
        authority.lock.ask = lambda: opener
        root = authority.root_pair(_of_root(own, opener)) if compromised else None
        newest = operator_key.replace(authority, root)[-1]
        told = {"key_sha256": newest.fingerprint, "term": newest.term, "by": newest.by}
        federation.audit.append(me(), "rotate", "operator", **told, compromised=compromised)
        say(as_json, told, f"new operator key; SHA-256 {newest.fingerprint}", *([] if not yes else [FOLLOWED]))


def ca_crl(home: Path, out: Path, passphrase: Path | None, as_json: bool) -> None:
    """Write the revocation list."""
    with _opened(home, as_json, passphrase) as federation:
        private_files.write_file(out, federation.crl(), 0o644)
        say(as_json, {"file": str(out)}, str(out))


def invite(
    home: Path, name: str, device_class: str, hours: float | None, count: int, owner: str, labels: Sequence[str],
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make tokens."""
    with _opened(home, as_json) as federation:
        if any("=" not in text for text in labels):
            raise EnrollError("E319", "--label is of the form KEY=VALUE")
        given = dict(text.split("=", 1) for text in labels) | ({"owner": owner} if owner else {})
        if name and count > 1:
            raise EnrollError("E117", "--name goes with one invitation, --count makes names up")
        made = [federation.invite(name, device_class, hours=hours, labels=given) for _ in range(count)]
        rows = [{"name": n, "token": token.line} for n, token in made]
        if out is not None:
            text = io.StringIO()
            writer = csv.writer(text)
            writer.writerows([("name", "token"), *((row["name"], row["token"]) for row in rows)])
            private_files.write_file(out, text.getvalue())
            say(as_json, {"file": str(out), "count": count}, f"{count} invitations in {out}")
        elif count == 1:
            say(as_json, rows[0], f"fedhet join {rows[0]['token']}")
        else:
            say(as_json, rows, *(f"{row['name']}  {row['token']}" for row in rows))


def approve(home: Path, names: Sequence[str], passphrase: Path | None, as_json: bool) -> None:
    """Let devices in."""
    with _opened(home, as_json, passphrase) as federation:
        done: list[Client] = []
        try:
            for name in names:
                done.append(federation.approve(name))
                if not as_json:
                    print(shown(f"{done[-1].name} is client {done[-1].number}"))
        except EnrollError as error:
            error.data["approved"] = [c.name for c in done]  # the others before it are in
            raise
        if as_json:
            say(True, [c.to_dict() for c in done])


@contextlib.contextmanager
def _from_memory(home: Path, name: str, reason: str, verb: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        full = unwritable(error)
        if full is None or verb != "revoke":
            raise
        try:
            told = control_socket.ask(home, {"shut": name, "reason": reason})
        except EnrollError as refused:
            if refused.code != "E312":
                raise
            why = f"{name} is not revoked ({full.detail}); nothing serves this federation now, so nobody is let in"
            raise EnrollError("E321", why, shut_out=False) from None
        text = f"the running server (process {told['pid']}) lets {told['name']} in no more, and notes it when it can"
        raise EnrollError("E321", f"{text}; one that is started before then does not know ({full.detail})",
                          shut_out=True) from None  # fmt: skip


def change(home: Path, verb: str, name: str, reason: str, as_json: bool) -> None:
    """Reject, suspend, resume or revoke. To revoke works although nothing can be written, in the server that runs."""
    with spoken(as_json), _from_memory(home, name, reason, verb), contextlib.closing(Federation(home)) as federation:
        changed = {
            "reject": lambda: federation.reject(name, reason),
            "suspend": lambda: federation.suspend(name, reason),
            "resume": lambda: federation.resume(name),
            "revoke": lambda: federation.revoke(name, reason),
        }[verb]()
        say(as_json, changed.to_dict(), f"{changed.name} is {changed.state}")


def weight(home: Path, name: str, examples: int | None, as_json: bool) -> None:
    """Approve how many examples a client counts with."""
    with _opened(home, as_json) as federation:
        before = federation.registry.client(name).approved_examples
        done = federation.weigh(name, examples)
        counts = client_profiles.examples(done)
        told = {"name": done.name, "old": before, "approved": done.approved_examples, "counts": counts or None}
        say(as_json, told, _counts(done, counts, before or 0))


def _counts(client: Client, counts: int, before: int) -> str:
    """With how many examples a client counts in a run, and why not with more."""
    approved, declared = client.approved_examples, int(client.declared.get("examples", 0))
    if counts:
        less = f" of the {declared} it declares" if counts < declared else ""
        more = ""
        if approved is not None and approved > declared:
            more = f"; it declares no more than {declared}: more are declared when it joins (fedhet join --examples)"
        return f"{client.name} counts with {counts} examples{less}; {approved} are approved, {before} were{more}"
    why = f"none of the {declared} it declares is approved"
    if not declared:
        why = f"it declares no number, whatever is approved ({approved} now); fedhet join --examples N declares one"
    return f"{client.name} counts with the examples of its part of each run's data: {why}"


def sign(
    home: Path, request: Path, out: Path, name: str, device_class: str, passphrase: Path | None, as_json: bool
) -> None:
    """Answer a request file."""
    with _opened(home, as_json, passphrase) as federation:
        made = offline_approval.answer(federation, request, out, name=name, device_class=device_class)
        mark = federation.authority.fingerprint
        told = {"name": made, "file": str(out), "root_sha256": mark}
        say(as_json, told, f"{made}: carry {out} to the device and run there", f"  fedhet client import {out.name} "
            f"--root-fingerprint {mark}")  # fmt: skip


def list_clients(home: Path, states: tuple[str, ...], as_json: bool) -> None:
    """The clients as a table."""
    with _opened(home, as_json) as federation:
        if unknown := set(states) - {*schema.LIVING, schema.REVOKED, schema.LEFT}:
            known = ", ".join(sorted({*schema.LIVING, schema.REVOKED, schema.LEFT}))
            raise EnrollError("E319", f"--state {min(unknown)}: the states are {known}")
        found = federation.registry.clients(*states)
        if as_json:
            say(True, [c.to_dict() for c in found])
            return
        if not found:
            print("none" if states else "no clients yet: fedhet enroll invite")
            return
        table = table_of(
            "#", "name", "state", "class", "node", "certificate", "declared", "measured", "observed", "address"
        )  # fmt: skip
        for c in found:
            table.add_row(*cells(*_row(c)))
        put(table, 200)


def show(home: Path, name: str, as_json: bool) -> None:
    """One client."""
    with _opened(home, as_json) as federation:
        known = federation.registry.client(name).to_dict()
        say(as_json, known, *_described(known))


def audit_verify(home: Path, head: str, as_json: bool) -> None:
    """Check the audit log, and the registry against it. `head` is a hash that was printed earlier, or ""."""
    with spoken(as_json):
        noted = head.strip().lower()
        if noted and not HEAD.fullmatch(noted):
            form = "64 hexadecimal digits, which `fedhet audit verify` prints behind the word head"
            raise EnrollError("E319", f"--head {head} is not a head: {form}")
        audit, registry = _log(home), Registry(home / "registry.db")
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
        audit, registry = _log(home), Registry(home / "registry.db")
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
            for r in _log(home).rows():
                told = f"{r['actor']}  {r['action']} {r['subject']}  {r['detail']}"
                lines.append(f"{r['n']:5} {_second(r['time'])}  {told}")
                rows.append(r)
        except (ValueError, KeyError, TypeError, OverflowError):  # somebody wrote into it
            if not as_json:
                say(False, None, *lines)
            raise EnrollError("E310", f"line {len(rows) + 1} cannot be read", line=len(rows) + 1) from None
        say(as_json, rows, *lines)


def _log(home: Path) -> Audit:
    if not (home / "registry.db").is_file():
        raise EnrollError("E306", f"{home} holds no federation: see --home and FEDHET_HOME")
    return Audit(home / "audit.jsonl")


def serve(
    home: Path, host: str, port: int | None, insecure: bool, trusted: Sequence[str], passphrase: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Serve until interrupted."""
    close_memory()
    log_to_terminal()
    with contextlib.ExitStack() as stack:
        stack.enter_context(spoken(as_json))
        federation = Federation(home)
        stack.enter_context(alone(home / LOCK, "serves it"))  # before anything of the first server's is touched
        endpoint = federation.authority.about.endpoint
        own = int(endpoint.rpartition(":")[2]) if port is None else port
        server = Server(federation, host, own, insecure, trusted)
        server.check_port()
        if federation.authority.lock.exists:
            federation.authority.lock.open(obtain(passphrase))
        else:
            print(UNENCRYPTED % (home / "ca"), file=sys.stderr)
        told = {"endpoint": endpoint, "listening": f"{host}:{own}", "superlink": str(server.superlink.socket)}
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, lambda *_: None)  # uvicorn ends on them, then raises them again for us
        say(as_json, told, f"serving {endpoint} on {host}:{own}; SuperLink on {server.superlink.socket}")
        server.run()


def _described(known: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a client, one fact a line; the three columns of its profile each under a heading."""
    for key, value in known.items():
        if isinstance(value, Mapping):
            yield from (f"{key}:", *(f"  {k:20} {v}" for k, v in value.items())) if value else ()
        elif value not in (None, "", ()):
            told = _second(value) if key in ("created", "changed", "expires") else value
            yield f"{key:12} {' '.join(value) if isinstance(value, tuple) else told}"


def _row(c: Client) -> list[str]:
    left = "" if c.expires is None else f"{(c.expires - time.time()) / 86_400:.1f} d"
    told = [f"{c.declared['examples']} examples{_asks(c)}"] if c.declared.get("examples") else []
    if "memory_bytes" in c.declared:
        told.append(f"{c.declared['memory_bytes'] / 2**30:.0f} GiB")
    step = c.measured.get("step_us")
    measured = "" if step is None else f"{step / 1e3:.3g} ms" + (" noisy" if c.measured.get("noisy") else "")
    if "uplink_bytes_per_s" in c.measured:
        measured += f", {c.measured['uplink_bytes_per_s'] / 1e6:.3g} MB/s up"
    seen = c.observed.get("sec_per_step")
    observed = "" if seen is None else f"{seen * 1e3:.3g} ms"
    doubt = client_profiles.doubtful(c)
    observed += " !" if doubt and doubt != "noisy" else ""
    own = [str(c.number), c.name, c.state, c.device_class, (c.node or "")[:12], left]
    return [*own, ", ".join(told), measured, observed, c.address]


def _asks(c: Client) -> str:
    """What a client that declares more than was approved waits for."""
    if c.approved_examples is None or c.declared["examples"] <= c.approved_examples:
        return ""
    return f" ({c.approved_examples} approved; the rest: fedhet clients weight {c.name})"


def _day(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).date().isoformat()


def _second(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S")
