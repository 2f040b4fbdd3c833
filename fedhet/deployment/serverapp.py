"""The ServerApp that `flwr run` and `fedhet submit` start: runs a configuration on Flower's grid into a run folder."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhet.config import composition
from fedhet.deployment.live_run import OnGrid
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import signed_orders
from fedhet.federation.pki.signed_orders import Order
from fedhet.federation.server.membership import Members
from fedhet.flower import reply_stream
from fedhet.runs import event_log, run_config, run_ending
from fedhet.runs.experiment import ON_GRID, Experiment
from fedhet.runs.result import Result
from fedhet.runs.write_ahead_log import alone


def serve(grid: Grid, context: Context) -> None:
    """Run a configuration to its end. Keys of the run configuration: `config` (a resolved YAML file) or `overrides` (to
    be composed); `folder` (default: runs/flower-<run id>); `wanted`, `least`, `poll` as for `live`.

    Raises EnrollError E215 or E217 if a federation's run has no valid order, and what the run raises.
    """
    given: dict[str, Any] = dict(context.run_config)
    folder = Path(str(given.get("folder") or f"runs/flower-{context.run_id}"))
    with alone(folder), run_ending.recorded(folder, reply_stream.lost):
        result = _run(grid, folder, given)
    print(json.dumps({key: result.row[key] for key in ("strategy", "versions", "accuracy", "weights_sha256")}))
    print(result.path.resolve())


def _run(grid: Grid, folder: Path, given: Mapping[str, Any]) -> Result:
    if given.get("config"):
        resolved = run_config.read(Path(str(given["config"])), strict=False)
    else:
        resolved = composition.resolved(composition.compose(shlex.split(str(given.get("overrides", "")))))
    experiment = Experiment.of({**resolved, "transport": ON_GRID})
    if not (folder / "config.yaml").exists():
        event_log.write_atomic(folder / "config.yaml", run_config.text(resolved))
    wanted_option = int(given.get("wanted") or 0)
    wanted = wanted_option or min(len(experiment.clients), max(1, len(list(grid.get_node_ids()))))
    least = int(given.get("least") or 0) or wanted_option or 1
    poll = float(given.get("poll") or 0.2)
    members = Members.here()
    order = Order.of(folder)
    if order is not None and not order.is_for(experiment.for_devices()):
        raise EnrollError("E217", f"{folder / 'config.yaml'} is not what {folder / signed_orders.NAME} is about")
    if order is None and members is not None:
        raise EnrollError(
            "E215", f"there is no {folder / signed_orders.NAME}, and clients of a federation refuse jobs without one"
        )
    with contextlib.closing(members) if members is not None else contextlib.nullcontext():
        transport = OnGrid(grid, wanted, least, poll, members, "" if order is None else order.sent)
        return replace(experiment, transport=transport).run(folder, resume=True, progress=_Lines())


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


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of `flwr run`; see `serve`."""
    serve(grid, context)
