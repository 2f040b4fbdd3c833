"""`transport=ray`: the same experiment under Flower's own simulation, in real time, on Ray actors."""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedhet.deployment.clientapp import client
from fedhet.deployment.live_run import live
from fedhet.engine.method import Misfit
from fedhet.runs.experiment import Experiment, Progress
from fedhet.runs.result import Result
from fedhet.simulation.virtual_time import RAY


@dataclass(frozen=True)
class RaySimulation:
    """The transport `ray`: Flower's simulation engine in real time, with `workers` actors of one CPU each."""

    name: ClassVar[str] = "ray"

    def check(self, experiment: Experiment) -> None:
        """Raises Misfit if ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise Misfit(f"transport={self.name} needs the package ray: {RAY}")

    def run(self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None) -> Result:
        """Run under `flwr.simulation`. Raises what the run raises."""
        clients, results, errors = len(experiment.clients), [], []
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                results.append(
                    live(experiment, folder, grid, wanted=clients, poll=0.02, resume=resume, progress=progress)
                )
            except BaseException as error:  # Flower's runner would only log it: it is raised again below
                errors.append(error)

        logging.getLogger("flwr").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        actors = max(1, experiment.workers)
        run_simulation(
            server,
            client,
            clients,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"num_cpus": actors, "include_dashboard": False, "log_to_driver": False},
            },
        )
        if errors:
            raise errors[0]
        return results[0]
