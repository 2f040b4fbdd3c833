"""`fedhet submit`, `fedhet follow` and `fedhet stop`: runs on the real clients of a federation."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer
from omegaconf import DictConfig, OmegaConf

from fedhet.cli import common
from fedhet.cli.progress import Bar
from fedhet.config import composition, overrides
from fedhet.deployment.notices import Reader
from fedhet.display import shown_lines
from fedhet.errors import InputError
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.output import say, spoken
from fedhet.federation.pki import operator_key, signed_orders
from fedhet.federation.pki.ca import Authority
from fedhet.federation.pki.passphrase import obtain
from fedhet.federation.server import connected_clients as clients
from fedhet.federation.server import submit as running
from fedhet.federation.server.connected_clients import ConnectedClients
from fedhet.federation.server.policy import Policy
from fedhet.federation.server.submit import Submission
from fedhet.federation.server.superlink import SuperLink
from fedhet.runs import run_config
from fedhet.runs.run_ending import FAILED
from fedhet.system.file_lock import occupied

CHOICES = ("ask", "detach", "stop")


def submit(
    home: Path, texts: Sequence[str], least: int | None, detach: bool, on_interrupt: str, resume: Path | None,
    out: Path | None, folder: Path | None, passphrase: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """`fedhet submit`: check and sign the configuration, start the run, follow it."""
    with spoken(as_json):
        _check_on_interrupt(on_interrupt)
        if resume is not None and (texts or out is not None):
            raise InputError("--resume continues in its own folder and configuration: leave out --out and overrides")
        link = SuperLink.served(home)
        if resume is not None:
            path = resume.resolve()
            if not (path / "config.yaml").is_file():
                raise EnrollError("E306", f"{path} is not a run folder: it has no config.yaml")
            if (path / "result.json").is_file():
                return _end(path, as_json)
            if occupied(path):  # it is running already
                return _detached(Submission.of(path), as_json) if detach else follow(path, on_interrupt, as_json)
        clients_now = clients.connected_clients(home, link)
        wanted, needed = clients.required_clients(clients_now, least)
        authority = Authority.load(home / "ca")
        authority.lock.ask = partial(obtain, passphrase)
        if resume is None:
            operator_key.load(authority)  # before anything is written: it may ask for a passphrase
            path = _prepare(texts, folder, out, clients_now)
        _sign(authority, path, Policy.load(home / "policy.yaml").order_days)
        if not as_json:
            online = f"{len(clients_now.online)} of {len(clients_now.active)} clients are online"
            begins = "those of them that answer" if least is None else f"{least}"
            print(f"{online}; the run begins with {begins}", file=sys.stderr)
        made = Submission.begin(link, path, wanted, needed)
        if detach:
            return _detached(made, as_json)
        return _follow(made, on_interrupt, as_json)


def follow(folder: Path, on_interrupt: str, as_json: bool) -> None:
    """`fedhet follow`: follow a running run, or show the result of a finished one."""
    with spoken(as_json):
        _check_on_interrupt(on_interrupt)
        if (folder / "result.json").is_file():
            return _end(folder, as_json)
        return _follow(Submission.of(folder.resolve()), on_interrupt, as_json)


def stop(folder: Path, as_json: bool) -> None:
    """`fedhet stop`: stop a run."""
    with spoken(as_json):
        if (folder / "result.json").is_file():
            raise EnrollError("E315", f"{folder} holds a finished run")
        made = Submission.of(folder.resolve())
        if (ended := made.ended) is not None:
            raise EnrollError(
                "E315", f"it has {ended.how}: {ended.why}" if ended.how == FAILED else f"it is {ended.how}"
            )
        made.stop()
        say(as_json, _state(made, "stopped"), f"stopped; go on with: fedhet submit --resume {folder}")


def _prepare(texts: Sequence[str], folder: Path | None, out: Path | None, clients_now: ConnectedClients) -> Path:
    """Compose for the connected clients, check the experiment, and create the run folder. Raises InputError,
    ConfigError, Misfit, and EnrollError E306 or E313."""
    from fedhet.runs.experiment import ON_GRID, Experiment

    given = {one.key_or_group for one in overrides.parse(list(texts))}
    cfg = composition.compose(texts, folder)
    if "fleet.clients" not in given and "clients" in cfg["fleet"]:
        cfg = composition.compose([*texts, f"fleet.clients={clients_now.expected}"], folder)
    resolved = composition.resolved(cfg)
    experiment = Experiment.of({**resolved, "transport": ON_GRID})
    waits = clients.waiting_notice(
        getattr(experiment.method.schedule, "min_updates", 1), len(experiment.clients), clients_now
    )
    experiment.check()
    path = (out or common.new_folder(cfg)).resolve()
    running.prepare(path, resolved)
    for notice in [*experiment.notices, *([waits] if waits else [])]:
        common.notice(notice)
    return path


def _sign(authority: Authority, path: Path, days: float) -> None:
    """Sign the run's configuration with the operator key, unless it has a valid order already."""
    from fedhet.config import factory
    from fedhet.runs.experiment import for_devices

    resolved = run_config.read(path / "config.yaml", strict=False)
    signed_orders.renew(authority, path, for_devices(resolved, len(factory.fleet(resolved))), days, time.time())


def _follow(made: Submission, on_interrupt: str, as_json: bool) -> None:
    cfg: DictConfig = OmegaConf.load(made.folder / "config.yaml")  # type: ignore[assignment]
    limits: Mapping[str, Any] = OmegaConf.to_container(cfg["stop"])  # type: ignore[assignment]
    news = Reader(made.folder)
    while True:
        try:
            with Bar(str(cfg["strategy"])) as show:
                made.follow(show, limits, on_step=lambda show=show: show.say(news()))  # type: ignore[misc]
            return _end(made.folder, as_json)
        except KeyboardInterrupt:
            choice = _ask_on_interrupt() if on_interrupt == "ask" else on_interrupt
            if choice == "detach":
                return _detached(made, as_json)
            if choice == "stop":
                made.stop()
                say(as_json, _state(made, "stopped"), f"stopped; go on with: fedhet submit --resume {made.folder}")
                raise typer.Exit(130) from None
        except EnrollError as error:
            if error.data.get("killed"):
                print("the run's process was killed; the server restarts it from its journal", file=sys.stderr)
                if (next_run := made.restarted()) is not None:
                    made = next_run
                    continue
                error = made.end_error() if made.ended is not None else error
            if not as_json and "log" in error.data:
                print(shown_lines(error.data["log"]), file=sys.stderr)
            raise error from None


def _ask_on_interrupt() -> str:
    """Ask what Ctrl-C means. Without a terminal, or at a second Ctrl-C: detach."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "detach"
    print("\nThe run continues on the server. d: detach, s: stop it, c: continue following", file=sys.stderr)
    try:
        while True:
            print("d/s/c [d]: ", end="", file=sys.stderr, flush=True)
            answer = input().strip().lower()[:1]
            if answer in ("d", "s", "c", ""):
                return {"s": "stop", "c": "continue"}.get(answer, "detach")
    except (KeyboardInterrupt, EOFError):
        return "detach"


def _detached(made: Submission, as_json: bool) -> None:
    say(
        as_json, _state(made, "running"), f"the run continues; follow it: fedhet follow {made.folder}", str(made.folder)
    )


def _state(made: Submission, state: str) -> dict[str, Any]:
    return {"run_id": made.run_id, "state": state, "folder": str(made.folder)}


def _end(folder: Path, as_json: bool) -> None:
    from fedhet.report import write_report
    from fedhet.runs.result import Result

    result = Result.read(folder)
    result.check_all()
    if not (folder / "report.html").is_file():
        write_report(folder)
    if as_json:
        print(json.dumps({**result.row, "folder": str(folder)}, indent=1))
    else:
        common.print_result(result, False)


def _check_on_interrupt(on_interrupt: str) -> None:
    if on_interrupt not in CHOICES:
        raise InputError(f"--on-interrupt {on_interrupt}: one of {', '.join(CHOICES)}")
