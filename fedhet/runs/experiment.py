"""One experiment as an object: its parts, from Python or from a resolved configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedhet.config import factory
from fedhet.engine.aggregator import Aggregation, Flat
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.engine.update_validation import Gate
from fedhet.errors import ConfigError
from fedhet.population.roster import Clients
from fedhet.protocols import NeedsClients
from fedhet.provenance import plugin_code
from fedhet.runs.evaluator import check_rhythm
from fedhet.runs.result import Result
from fedhet.world import World

Progress = Callable[[Mapping[str, Any]], None]
"""Called during a run with t (seconds), version, tasks, given (jobs dispatched), accuracy (or None), share (of the
limit, in [0, 1]) and wall_seconds."""
VIRTUAL = {"_target_": "fedhet.simulation.virtual_time.VirtualTime"}
"""The default transport of an experiment, by name since transports import this module."""
ON_GRID = {"_target_": "fedhet.deployment.live_run.OnGrid"}
"""The transport of a run inside a ServerApp."""


class Transport(Protocol):
    """How a run is executed: with simulated clients in virtual time, or Flower's processes and messages in real time.

    The method is the same object on every transport. To add one, write a class and a YAML file with its `_target_`.
    """

    @property
    def name(self) -> str:
        """The name of the transport in results."""
        ...

    def check(self, experiment: Experiment) -> None:
        """Before the run writes anything: raises Misfit if the transport cannot run the experiment."""
        ...

    def run(self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None) -> Result:
        """Run to the end, or with `resume` continue the run in the folder, which has the complete log afterwards."""
        ...


@dataclass(frozen=True)
class Experiment:
    """A method, the clients it runs on, their data, and when to stop.

    `timeout` is in seconds of the run's clock: a job without an answer for that long has failed. `workers` processes
    train the simulated clients (0: in this process); their number changes no result. `checkpoint_every` is in wall
    seconds. `keep_best` stores the most accurate evaluated version in addition to the last one (best.safetensors).
    `gate` has options of `fedhet.engine.update_validation.Gate` by name. Raises ValueError for values out of range and
    Misfit for an aggregation that the method cannot use.
    """

    method: Method
    clients: Clients
    world: World
    limits: Limits
    seed: int = 0
    target: float = 0.9
    workers: int = 0
    timeout: float | None = None
    every_versions: int = 1
    every_seconds: float = 0.0
    keep_best: bool = False
    checkpoint_every: float = 15.0
    max_weight: float | None = None
    gate: Mapping[str, Any] = field(default_factory=dict)
    transport: Transport = field(default_factory=lambda: factory.transport(VIRTUAL))
    aggregation: Aggregation = field(default_factory=Flat)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout} seconds must be positive")
        if not self.checkpoint_every >= 0:
            raise ValueError(f"checkpoint.every_seconds={self.checkpoint_every} must be 0 or more seconds")
        check_rhythm(self.every_versions, self.every_seconds)
        self.aggregation.check(self.method)
        Gate(max_weight=self.max_weight, **self.gate)  # raises ValueError for values out of range
        if self.world.clients != len(self.clients):
            raise ValueError(f"data for {self.world.clients} clients, but the fleet has {len(self.clients)}")

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Experiment:
        """From a resolved configuration. Raises ConfigError, Misfit, and PluginError for a plug-in that was changed."""
        plugin_code.check(cfg)
        method = factory.method(cfg)  # first: a misfit must be reported before data are read
        fleet = factory.fleet(cfg)
        world = factory.world(cfg, len(fleet))
        return cls(
            method=method,
            clients=fleet.with_examples(world.examples()),
            world=world,
            limits=_limits(cfg["stop"]),
            seed=int(cfg["seed"]),
            target=float(cfg["target"]),
            workers=int(cfg["workers"]),
            timeout=cfg["timeout"],
            every_versions=int(cfg["evaluate"]["every_versions"]),
            every_seconds=float(cfg["evaluate"]["every_seconds"]),
            keep_best=bool(cfg["evaluate"].get("keep_best", False)) or cfg["stop"].get("target") is not None,
            checkpoint_every=float(cfg["checkpoint"]["every_seconds"]),
            max_weight=cfg["max_weight"],
            gate=cfg.get("gate", {}),
            transport=factory.transport(cfg["transport"]),
            aggregation=factory.aggregation(cfg),
            config=cfg,
        )

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the operator about the method, the aggregation and the data."""
        planned = self.aggregation.notices(self.method, len(self.clients))
        return (*self.method.notices, *planned, *self.world.describe().get("notices", ()))

    def check(self) -> None:
        """Check that a run can begin, without writing. Raises ValueError if the schedule needs more clients than there
        are, and Misfit for faults that a trial of every part finds; see `fedhet.runs.rehearsal`."""
        from fedhet.runs import rehearsal

        if isinstance(self.method.schedule, NeedsClients):
            self.method.schedule.check_clients(len(self.clients))
        rehearsal.rehearse(self)

    def for_devices(self) -> str:
        """The configuration that a device across a network needs, as JSON; the same text for the same experiment."""
        return for_devices(self.config, len(self.clients))

    def run(self, folder: Path | str, *, resume: bool = False, progress: Progress | None = None) -> Result:
        """Run on this experiment's transport; the folder then has the complete log and result."""
        return self.transport.run(self, Path(folder), resume=resume, progress=progress)


def for_devices(cfg: Mapping[str, Any], clients: int) -> str:
    """The part of a resolved configuration that a device across a network needs, as JSON."""
    axes = ("strategy", "seed", "world", "data", "partition", "model", "attack", "work", "schedule", "space", "rule")
    transforms = ("budget", "optimizer", "staleness", "privacy", "codec")
    return json.dumps({**{k: cfg[k] for k in (*axes, *transforms)}, "clients": clients}, sort_keys=True)


def _limits(stop: Mapping[str, Any]) -> Limits:
    """The limits of a run. Raises ConfigError naming the key."""
    try:
        return Limits(**stop)
    except ValueError as error:
        text = str(error)
        raise ConfigError(f"stop.{text}" if text.partition("=")[0] in stop else f"stop: {text}") from None
