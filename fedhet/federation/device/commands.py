"""The device's commands: `fedhet join` and `fedhet client ...`. Each raises typer.Exit with the code of an
EnrollError."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import typer

from fedhet.display import log_to_terminal, shown
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.output import cells, put, say, spoken, table_of
from fedhet.federation.device import agent, bandwidth, benchmark, node_settings, offline_join
from fedhet.federation.device import join as joining
from fedhet.federation.device.allowlist import Allowlist
from fedhet.federation.device.doctor import examine
from fedhet.federation.device.state import Device

Declared: TypeAlias = tuple[str, str, int, Path | None]
"""The options --data, --partition, --examples and --labels."""
Allowed: TypeAlias = tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None]
"""The options --allow, --data and --hub of `fedhet client run`; None where one was not given."""


def join(
    state: Path, token: str, name: str, declared: Declared, seconds: float, wait: float, as_json: bool
) -> None:  # fmt: skip
    """Join with a token."""
    with spoken(as_json):
        line = sys.stdin.readline() if token == "-" else token
        result = joining.begin(state, line, _data(declared), name=name, measured=_measured(seconds))
        if result["state"] == "pending" and wait > 0:
            if not as_json:
                print(shown(f"{result['name']} ({result['node'][:12]}) waits for approval"), file=sys.stderr)
            result = joining.wait(Device(state), wait)
        if result["state"] == "active" and seconds > 0:
            joining.update_profile(Device(state), bandwidth.measure(Device(state)))
        say(as_json, result, f"{result['name']} is {result['state']}", *_next(result["state"]))


def poll(state: Path, as_json: bool) -> None:
    """Ask what became of the application."""
    with spoken(as_json):
        result = joining.poll(Device(state))
        say(as_json, result, f"{result['name']} is {result['state']}", *_next(result["state"]))


def run(state: Path, flower: bool, allowed: Allowed, as_json: bool) -> None:
    """Work until SIGINT or SIGTERM. The log is on standard error."""
    log_to_terminal()
    worker = agent.Agent(Device(state), flower)
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: worker.stop.set())
    with spoken(as_json):
        store_allowed(worker.device, allowed)
        worker.run()
        say(as_json, {"state": "stopped"}, "stopped")


def store_allowed(device: Device, allowed: Allowed) -> None:
    """Store what the owner allows jobs to use. Raises EnrollError E316, or E319 for what does not exist."""
    packages, folders, hubs = ([name for name in names or () if name] for names in allowed)
    folders = [str(_absolute(name)) for name in folders]
    Allowlist(tuple(packages), tuple(folders)).check()
    named = zip(("allow", "folders", "hubs"), (packages, folders, hubs), allowed, strict=True)
    changes = {key: found for key, found, given in named if given is not None}
    if changes:
        _ = device.about  # raises E316 for a device that never joined
        device.note(**changes)


def doctor(state: Path, as_json: bool) -> None:
    """Check this device and print a table; exit code 1 if a check fails."""
    checks = examine(Device(state))
    if as_json:
        say(True, [check.to_dict() for check in checks])
    else:
        table = table_of("check", "", "found", "remedy")
        for check in checks:
            table.add_row(*cells(check.name, "ok" if check.ok else "PROBLEM", check.found, check.fix))
        put(table, 160)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def profile(state: Path, seconds: float, send: bool, as_json: bool) -> None:
    """Measure this machine, and with `send` its link, again; store and send the profile."""
    with spoken(as_json):
        device = Device(state)
        joining.measured(device)  # raises E316 before measuring for a device that never joined
        found = {**_measured(seconds), **(bandwidth.measure(device) if send else {})}
        claim = joining.update_profile(device, found, send=send)
        lines = [f"{key:14} {value}" for key, value in {**claim["declared"], **claim["measured"]}.items()]
        say(as_json, claim, *lines)


def renew(state: Path, as_json: bool) -> None:
    """Renew the certificate."""
    with spoken(as_json):
        leaf = Device(state).renew()
        days = (leaf.not_after - time.time()) / 86_400
        say(
            as_json, {"serial": leaf.serial, "not_after": int(leaf.not_after)}, f"a new certificate for {days:.1f} days"
        )


def rotate(state: Path, as_json: bool) -> None:
    """Replace all keys of this client."""
    with spoken(as_json):
        device = Device(state)
        leaf = device.rotate()
        result = {"node": leaf.node, "serial": leaf.serial}
        say(as_json, result, f"new keys: this client is node {leaf.node[:12]} now; the old keys are revoked")


def leave(state: Path, purge: bool, as_json: bool) -> None:
    """Leave the federation; with `purge`, delete the state folder."""
    with spoken(as_json):
        device = Device(state)
        name = device.about.get("name")
        try:
            device.ask("leave")
        except EnrollError as error:
            if error.code not in ("E202", "E212"):  # revoked or left already
                raise
        device.note(state="left")
        if purge:
            shutil.rmtree(state)
        say(
            as_json,
            {"name": name, "state": "left", "purged": purge},
            f"{name} has left" + (", its keys are deleted" if purge else ""),
        )


def request(state: Path, out: Path, name: str, declared: Declared, seconds: float, as_json: bool) -> None:
    """Write a request file."""
    with spoken(as_json):
        measured = _measured(seconds)
        device = offline_join.request(state, out, _data(declared), name=name, measured=measured, clock=time.time)
        result = {"file": str(out), "node": device.identity.node_id}
        say(as_json, result, f"carry {out} to the operator, who runs: fedhet enroll sign {out.name} -o answer.zip")


def import_(state: Path, answer: Path, fingerprint: str, as_json: bool) -> None:
    """Import an answer file."""
    with spoken(as_json):
        result = offline_join.accept(Device(state), answer, fingerprint)
        say(as_json, result, f"{result['name']} is {result['state']}", *_next(result["state"]))


def service(state: Path, as_json: bool) -> None:
    """Print a systemd unit."""
    with spoken(as_json):
        _ = Device(state).about  # raises E316 for a device that never joined
        text = node_settings.systemd_unit(state, shutil.which("fedhet") or f"{sys.executable} -m fedhet")
        say(as_json, {"unit": text}, *text.splitlines())


def _data(declared: Declared) -> joining.Data:
    path, part, examples, labels = declared
    try:
        counted: dict[str, Any] = json.loads(labels.read_text()) if labels is not None else {}
        k, n = (int(text) for text in part.split("/")) if part else (None, None)
        return joining.Data(str(_absolute(path)) if path else "", examples, k, n, counted)
    except (OSError, ValueError, AttributeError) as error:
        raise EnrollError("E303", f"the data declaration: {error}") from None


def _absolute(path: str) -> Path:
    """An absolute path: the node runs in another working directory."""
    return Path(path).expanduser().absolute()


def _measured(seconds: float) -> dict[str, int]:
    return benchmark.run(seconds) if seconds > 0 else {}


def _next(state: str) -> list[str]:
    return ["next: fedhet client run"] if state == "active" else []
