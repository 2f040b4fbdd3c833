"""A run on a grid of Flower's own, in real time: under Ray's simulation, on a SuperLink, or inside `flwr run`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid
from omegaconf import OmegaConf

from fedhet import config, origin, record
from fedhet.clock import WallClock
from fedhet.experiment import Experiment, Progress
from fedhet.nodes import Nodes
from fedhet.result import Result
from fedhet.session import Session

WATCH = 3.0
"""Seconds between looks at which nodes are online."""


def live(
    experiment: Experiment,
    folder: Path,
    grid: Grid,
    *,
    wanted: int,
    poll: float,
    resume: bool = False,
    progress: Progress | None = None,
    gather_seconds: float = 180.0,
) -> Result:
    """Run on a grid whose nodes declare their client numbers; starts when `wanted` of them are known.

    Clients that are not there are left out until they come. After a resume, jobs that were in flight count as failed
    ("restart"): their answers went to the server's earlier life. Raises NoClients if too few nodes answer in time.
    """
    clock = WallClock(poll)
    nodes = Nodes(grid, clock)
    nodes.gather(wanted, gather_seconds, lambda: clock.wait(None))
    session = Session(experiment, folder, resume=resume, progress=progress, code=origin.fingerprint(), sealed=True)
    server = session.server
    clock = WallClock(poll, offset=server.now)
    server.barred.update(set(server.roster) - set(nodes.of_client))
    drive = session.join(grid, clock, lambda client: nodes.of_client[client], seal=True, world=experiment.for_devices())
    if session.resumed:
        for job in sorted(server.inflight):
            server.failed(job, "restart", clock.now())
    due = [clock.now() + WATCH]

    def watch() -> None:
        if clock.now() < due[0]:
            return
        due[0] = clock.now() + WATCH
        came, gone = nodes.refresh()
        for client in gone:
            server.left(client, clock.now())
        for client in came:
            if client in server.roster and client not in session.gate.suspended:
                server.joined(client, clock.now())
        session.record.sync()

    drive.before_instant = watch
    return session.go(dict, dict)


def serve(grid: Grid, context: Context) -> None:
    """What our ServerApp does. Run configuration: `config` names a resolved YAML file, else `overrides` are composed;
    `folder` is where the run folder goes (default: runs/flower-<run id>)."""
    given: dict[str, Any] = dict(context.run_config)
    if given.get("config"):
        resolved: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(str(given["config"])), resolve=True)  # type: ignore[assignment]
    else:
        resolved = config.resolved(config.compose(shlex.split(str(given.get("overrides", "")))))
    experiment = Experiment.of({**resolved, "transport": {**resolved["transport"], "name": "flower"}})
    folder = Path(str(given.get("folder") or f"runs/flower-{context.run_id}"))
    folder.mkdir(parents=True, exist_ok=True)
    resume = (folder / "checkpoint").is_dir()
    if not (folder / "config.yaml").exists():
        record.write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
    wanted = int(given.get("wanted") or 0) or min(len(experiment.clients), max(1, len(list(grid.get_node_ids()))))
    poll = float(given.get("poll") or 0.2)
    result = live(experiment, folder, grid, wanted=wanted, poll=poll, resume=resume, progress=_Lines())
    print(json.dumps({key: result.row[key] for key in ("strategy", "versions", "accuracy", "weights_sha256")}))
    print(result.path.resolve())


class _Lines:
    """One line of progress per version: a ServerApp's output is a log."""

    def __init__(self) -> None:
        self._version = -1

    def __call__(self, row: Mapping[str, Any]) -> None:
        if row["version"] == self._version:
            return
        self._version = row["version"]
        accuracy = "" if row["accuracy"] is None else f"  accuracy {row['accuracy']:.3f}"
        print(f"t {row['t']:.1f} s  version {row['version']}  tasks {row['tasks']}{accuracy}", flush=True)
