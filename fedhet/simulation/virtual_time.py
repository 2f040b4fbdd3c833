"""Transports in virtual time: simulated clients on the processors of this machine, or of a Ray cluster."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedhet.config import factory
from fedhet.engine.background_tasks import InlineExecutor
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Misfit
from fedhet.flower import messages as records
from fedhet.flower.client_handlers import DeviceApp, client_app
from fedhet.numerics.rng import stream
from fedhet.population.profile import Timing
from fedhet.population.roster import Clients
from fedhet.provenance import plugin_code
from fedhet.runs.experiment import Experiment, Progress
from fedhet.runs.result import Result
from fedhet.runs.session import Session
from fedhet.simulation.background_tasks import PoolExecutor
from fedhet.simulation.executor import Executor
from fedhet.simulation.virtual_grid import VirtualGrid
from fedhet.simulation.worker_pool import Pool
from fedhet.system.threads import one_thread
from fedhet.types import ClientId, Job

RAY = "pip install 'flwr[simulation]>=1.41,<1.43'"
"""How ray is installed, with the versions of Flower that fedhet runs on."""
FIRST_NODE = 2
"""Node id of client 0 on the virtual grid; 1 is the server's."""


@dataclass(frozen=True)
class VirtualTime:
    """Virtual time on worker processes of this machine, as many as the experiment's `workers` (0: in this process)."""

    name: ClassVar[str] = "virtual"

    def check(self, experiment: Experiment) -> None:
        """Nothing to check."""

    def run(self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None) -> Result:
        """Simulate it."""
        device = Device(experiment.method, experiment.world.model(), experiment.world, experiment.seed)
        with one_thread(), Pool(DeviceApp(device, code_of(experiment)), experiment.workers) as pool:
            return _in_virtual_time(experiment, pool, folder, resume=resume, progress=progress)


@dataclass(frozen=True)
class RayCluster:
    """Virtual time on the processors of a Ray cluster: the same bits as on one machine of the same processor type.

    `address` is the cluster's head (host:port); "auto" is the cluster this machine belongs to, "" this machine alone.
    `workers` processes run in the cluster; 0 is one per processor. Machines build the experiment from its
    configuration, so it needs one.
    """

    name: ClassVar[str] = "cluster"
    address: str = "auto"
    workers: int = 0

    def check(self, experiment: Experiment) -> None:
        """Raises Misfit if ray is not installed, or if no cluster answers at the address."""
        if importlib.util.find_spec("ray") is None:
            raise Misfit(f"transport={self.name} needs the package ray: {RAY}")
        if experiment.config:
            from fedhet.simulation.ray_executor import reachable

            try:
                reachable(self.address)
            except OSError as error:
                raise Misfit(f"transport.address={self.address}: {error}") from None

    def run(self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None) -> Result:
        """Simulate it. Raises ValueError for an experiment without a configuration."""
        if not experiment.config:
            raise ValueError(
                "transport=cluster needs an experiment made from a configuration: other machines build from it"
            )
        try:
            from fedhet.simulation.ray_executor import Cluster
        except ModuleNotFoundError as error:
            raise ValueError(f"transport=cluster needs ray ({error}): {RAY}") from None

        make = partial(device_app, experiment.for_devices(), tuple(experiment.config.get("plugins", ())))
        with one_thread(), Cluster(make, address=self.address, workers=self.workers) as pool:
            return _in_virtual_time(experiment, pool, folder, resume=resume, progress=progress)


def code_of(experiment: Experiment) -> str:
    """The fingerprint of all code of an experiment: fedhet's, and that of external plug-ins."""
    return plugin_code.combined(experiment.config.get("plugins", {}))


def device_app(world: str, plugins: Sequence[str] = ()) -> ClientApp:
    """The client app of one device, built from the JSON of `Experiment.for_devices`. `plugins` are the run's external
    modules, of which this machine may have other versions."""
    device = factory.device(json.loads(world))
    return client_app(lambda message: device, seal=False, code=plugin_code.combined(plugin_code.here(plugins)))


def _in_virtual_time(
    experiment: Experiment, pool: Executor, folder: Path, *, resume: bool, progress: Progress | None
) -> Result:
    session = Session(experiment, folder, resume=resume, progress=progress, code=code_of(experiment), sealed=False)
    clients, timing_model = experiment.clients, TimingModel(experiment)
    resending, joules = False, dict[ClientId, float]()

    def observe(message: Message, timing: Timing) -> None:
        if resending:
            return
        job = timing_model.last
        power = clients[job.client].energy_joule_per_step
        if power is not None and (timing.lost is None or timing.arrived_ns > timing.trained_ns > timing.downloaded_ns):
            joules[job.client] = joules.get(job.client, 0.0) + power * job.budget.steps * job.budget.width
        fields: dict[str, object] = {"job": job.id, "client": job.client, "downloaded": timing.downloaded_ns / 1e9}
        fields |= {"trained": timing.trained_ns / 1e9, "arrives": timing.arrived_ns / 1e9, "lost": timing.lost}
        session.record.emit(grid.now(), "client_timing", fields)

    grid = VirtualGrid(
        pool,
        range(FIRST_NODE, FIRST_NODE + len(clients)),
        timing_model,
        config=lambda node: {"partition-id": node - FIRST_NODE, "num-partitions": len(clients)},
        silent=lambda node: clients[node - FIRST_NODE].silent,
        observe=observe,
    )
    session.server.server_tasks.set_executor(PoolExecutor(pool, InlineExecutor(dict(experiment.method.transforms))))
    loop = session.join(grid, grid, lambda client: client + FIRST_NODE)
    if session.resumed:
        resending = True
        grid.states.update(session.resumed.clients)
        joules.update({int(client): spent for client, spent in session.resumed.numbers["joules"].items()})
        for job in sorted(session.server.inflight.values(), key=lambda j: j.id):
            grid.now_ns = round(job.sent * 1e9)
            loop.resend(job)
        grid.now_ns = session.resumed.numbers["now_ns"]
        resending = False
    session.tally = lambda: energy(clients, joules)
    return session.go(lambda: {"now_ns": grid.now_ns, "joules": joules}, lambda: grid.states)


def energy(clients: Clients, joules: Mapping[ClientId, float]) -> dict[str, Any]:
    """Energy of training on the clients that declare the energy of a step: the total in joules (None: no client
    declares it), and the number of clients that used more than their battery has."""
    if not joules:
        return {"energy_joules": None, "batteries_exhausted": None}
    holds = {client: clients[client].battery_joule for client in joules}
    empty = sum(held is not None and joules[client] > held for client, held in holds.items())
    return {"energy_joules": math.fsum(joules.values()), "batteries_exhausted": empty}


class TimingModel:
    """The time of a job from its client's profile: download, training, upload; or when it is lost.

    `last` is the job of the last call's message. A job needs memory for the model, its payload, and twice its answer:
    the gradient is as large as the delta. This is a lower bound; activations are not counted.

    Raises ValueError if the model exceeds every client's memory.
    """

    last: Job

    def __init__(self, experiment: Experiment) -> None:
        self._clients, self._seed = experiment.clients, experiment.seed
        self._flops = experiment.world.flops()
        module = experiment.world.model().module
        self._model = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
        most = float(np.max(self._clients.columns.get("memory_bytes", math.inf)))
        if self._model > most:
            raise ValueError(f"the model takes {self._model} bytes, but no client has a memory_bytes above {most:g}")

    def __call__(self, message: Message, at_ns: int) -> Timing:
        self.last, carrier = records.read_job(message.content)
        payload, _ = records.read_payload(message.content)
        return self._clients[self.last.client].simulate_timing(
            at_ns=at_ns,
            steps=self.last.budget.steps,
            batch=carrier["batch"],
            bytes_down=len(payload),
            bytes_up=carrier["bytes_up"],
            flops_per_sample=self._flops,
            rng=stream(self._seed, "trip", self.last.client, self.last.turn),
            width=self.last.budget.width,
            memory_bytes=self._model + len(payload) + 2 * carrier["bytes_up"],
        )
