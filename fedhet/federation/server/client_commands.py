"""The operator's commands on devices and clients: `fedhet enroll ...` and `fedhet clients ...`."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhet.display import shown
from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError, unwritable
from fedhet.federation.common.output import cells, put, say, spoken, table_of
from fedhet.federation.server import client_profiles, control_socket, offline_approval, schema
from fedhet.federation.server.command_context import date_and_time, opened
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.registry import Client


def invite(
    home: Path, name: str, device_class: str, hours: float | None, count: int, owner: str, labels: Sequence[str],
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """`fedhet enroll invite`: make invitation tokens."""
    with opened(home, as_json) as federation:
        if any("=" not in text for text in labels):
            raise EnrollError("E319", "--label must have the form KEY=VALUE")
        given = dict(text.split("=", 1) for text in labels) | ({"owner": owner} if owner else {})
        if name and count > 1:
            raise EnrollError("E117", "--name is for one invitation; with --count the names are generated")
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
    """`fedhet enroll approve`: admit pending devices."""
    with opened(home, as_json, passphrase) as federation:
        done: list[Client] = []
        try:
            for name in names:
                done.append(federation.approve(name))
                if not as_json:
                    print(shown(f"{done[-1].name} is client {done[-1].number}"))
        except EnrollError as error:
            error.data["approved"] = [c.name for c in done]  # the devices before it are admitted
            raise
        if as_json:
            say(True, [c.to_dict() for c in done])


@contextlib.contextmanager
def _through_control_socket(home: Path, name: str, reason: str, verb: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        full = unwritable(error)
        if full is None or verb != "revoke":
            raise
        try:
            values = control_socket.ask(home, {"shut": name, "reason": reason})
        except EnrollError as refused:
            if refused.code != "E312":
                raise
            why = f"{name} is not revoked ({full.detail}); no server runs for this federation, so no client can connect"
            raise EnrollError("E321", why, shut_out=False) from None
        text = f"the running server (process {values['pid']}) refuses {values['name']} and will record it when it can"
        raise EnrollError("E321", f"{text}; a server started before then does not know ({full.detail})",
                          shut_out=True) from None  # fmt: skip


def change(home: Path, verb: str, name: str, reason: str, as_json: bool) -> None:
    """Reject, suspend, resume or revoke a client (`verb`). If the disk cannot be written, revoking shuts the client out
    of the running server through its control socket."""
    with (
        spoken(as_json),
        _through_control_socket(home, name, reason, verb),
        contextlib.closing(Federation(home)) as federation,
    ):
        changed = {
            "reject": lambda: federation.reject(name, reason),
            "suspend": lambda: federation.suspend(name, reason),
            "resume": lambda: federation.resume(name),
            "revoke": lambda: federation.revoke(name, reason),
        }[verb]()
        say(as_json, changed.to_dict(), f"{changed.name} is {changed.state}")


def weight(home: Path, name: str, examples: int | None, as_json: bool) -> None:
    """`fedhet clients weight`: approve the number of examples that a client is weighted with."""
    with opened(home, as_json) as federation:
        before = federation.registry.client(name).approved_examples
        done = federation.weigh(name, examples)
        counts = client_profiles.examples(done)
        values = {"name": done.name, "old": before, "approved": done.approved_examples, "counts": counts or None}
        say(as_json, values, _weight_text(done, counts, before or 0))


def _weight_text(client: Client, counts: int, before: int) -> str:
    """The number of examples that a client is weighted with in a run, and why it is not higher."""
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
    """`fedhet enroll sign`: approve a request file and write the answer file."""
    with opened(home, as_json, passphrase) as federation:
        made = offline_approval.answer(federation, request, out, name=name, device_class=device_class)
        mark = federation.authority.fingerprint
        values = {"name": made, "file": str(out), "root_sha256": mark}
        say(as_json, values, f"{made}: carry {out} to the device and run there", f"  fedhet client import {out.name} "
            f"--root-fingerprint {mark}")  # fmt: skip


def list_clients(home: Path, states: tuple[str, ...], as_json: bool) -> None:
    """`fedhet clients list`: the clients as a table, or as JSON."""
    with opened(home, as_json) as federation:
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
            table.add_row(*cells(*_cells(c)))
        put(table, 200)


def show(home: Path, name: str, as_json: bool) -> None:
    """`fedhet clients show`: all that is stored about one client."""
    with opened(home, as_json) as federation:
        known = federation.registry.client(name).to_dict()
        say(as_json, known, *_lines(known))


def _lines(known: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a client, one a line; each column of its profile under its own heading."""
    for key, value in known.items():
        if isinstance(value, Mapping):
            yield from (f"{key}:", *(f"  {k:20} {v}" for k, v in value.items())) if value else ()
        elif value not in (None, "", ()):
            values = date_and_time(value) if key in ("created", "changed", "expires") else value
            yield f"{key:12} {' '.join(value) if isinstance(value, tuple) else values}"


def _cells(c: Client) -> list[str]:
    left = "" if c.expires is None else f"{(c.expires - time.time()) / 86_400:.1f} d"
    values = [f"{c.declared['examples']} examples{_unapproved(c)}"] if c.declared.get("examples") else []
    if "memory_bytes" in c.declared:
        values.append(f"{c.declared['memory_bytes'] / 2**30:.0f} GiB")
    step = c.measured.get("step_us")
    measured = "" if step is None else f"{step / 1e3:.3g} ms" + (" noisy" if c.measured.get("noisy") else "")
    if "uplink_bytes_per_s" in c.measured:
        measured += f", {c.measured['uplink_bytes_per_s'] / 1e6:.3g} MB/s up"
    seen = c.observed.get("sec_per_step")
    observed = "" if seen is None else f"{seen * 1e3:.3g} ms"
    doubt = client_profiles.doubtful(c)
    observed += " !" if doubt and doubt != "noisy" else ""
    own = [str(c.number), c.name, c.state, c.device_class, (c.node or "")[:12], left]
    return [*own, ", ".join(values), measured, observed, c.address]


def _unapproved(c: Client) -> str:
    """A note on a client that declares more examples than are approved; "" otherwise."""
    if c.approved_examples is None or c.declared["examples"] <= c.approved_examples:
        return ""
    return f" ({c.approved_examples} approved; the rest: fedhet clients weight {c.name})"
