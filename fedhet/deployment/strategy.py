"""A fedhet method as a Flower `Strategy`, for a ServerApp of the user's own:

    MethodStrategy(method, experiment).start(grid, initial_arrays, num_rounds=20)

Flower's `Strategy.start` is a synchronous loop; here the same call runs the method's own schedule on the grid. The
clients must run `fedhet.flower.client_handlers.client`, which builds its half from the configuration in each job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import getLogger
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from fedhet.engine.aggregator import Flat
from fedhet.engine.clock import OwnTime, WallClock
from fedhet.engine.server import Server
from fedhet.engine.stopping import Limits
from fedhet.engine.update_validation import Gate
from fedhet.flower import reply_stream
from fedhet.flower.event_loop import EventLoop
from fedhet.flower.initial_model import Layout, install
from fedhet.flower.node_directory import NodeDirectory, absence_notices
from fedhet.protocols import Clock
from fedhet.provenance import device_code
from fedhet.runs.experiment import Experiment

log = getLogger("fedhet")


class MethodStrategy(flower.Strategy):
    """The method of an experiment built from a configuration, on any Flower grid whose nodes declare `partition-id`.

    It waits for `wanted` clients (default: as many as are online at the start) and polls every `poll` seconds. Clients
    of the experiment that are absent at the start take no part. A virtual grid is its own clock; `clock` is for other
    grids with a time of their own.
    """

    def __init__(
        self, experiment: Experiment, *, wanted: int | None = None, poll: float = 0.2, clock: Clock | None = None
    ) -> None:
        if not experiment.config:
            raise ValueError("clients elsewhere need a configuration: build the experiment with Experiment.of(...)")
        self.experiment, self.wanted = experiment, wanted
        self.clock, self.poll = clock, poll
        self._layout = Layout((), (), {})

    def summary(self) -> None:
        method = self.experiment.method
        parts = [method.schedule, method.space, method.rule, method.work, *(layer for _, layer in method.transforms)]
        log.info("fedhet method %s: %s", method.name, ", ".join(type(p).__name__ for p in parts))

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> flower.Result:
        """Run for `num_rounds` model versions or `timeout` seconds. `evaluate_fn` is called with every version.

        `initial_arrays` is `ArrayRecord(model.state_dict())` of the experiment's model, or a list of its arrays; the
        result has the same keys or order, see `fedhet.flower.initial_model`.

        Raises ValueError if the arrays are not the model's, or if a train or evaluate configuration is given: a
        method's hyper-parameters are its own.
        """
        if train_config or evaluate_config:
            raise ValueError("train_config and evaluate_config are not used: set the method's hyper-parameters")
        self.summary()
        clock = self.clock or (grid.as_clock() if isinstance(grid, OwnTime) else WallClock(self.poll))
        grid = reply_stream.complete_replies(grid)
        server = self._server(initial_arrays, Limits(versions=num_rounds, seconds=clock.now() + timeout))
        world = self.experiment.for_devices()
        nodes = NodeDirectory(grid, clock, code=device_code.hashes(device_code.modules(world), running=False))
        there = min(len(self.experiment.clients), max(1, len(list(grid.get_node_ids()))))
        nodes.gather(self.wanted or there, timeout, lambda: clock.wait(None), least=self.wanted or 1)
        result = flower.Result()
        server.excluded.update(set(server.roster) - set(nodes.of_client))
        for notice in absence_notices(server.taking_part, len(server.roster)):
            log.warning(notice)
        gate = Gate(max_weight=self.experiment.max_weight, code=device_code.digest(world, running=False), sealed=True)
        loop = EventLoop(
            server, grid, clock, gate, lambda client: nodes.of_client[client], True,
            world, self.experiment.timeout,
        )  # fmt: skip
        seen = -1

        def report_version() -> None:
            nonlocal seen
            if server.version == seen:
                return
            seen = server.version
            result.arrays = self._arrays(server)
            if evaluate_fn is not None and (metrics := evaluate_fn(seen, result.arrays)) is not None:
                result.evaluate_metrics_serverapp[seen] = metrics

        loop.after_instant = report_version
        report_version()
        loop.run()
        report_version()
        return result

    def _server(self, initial: ArrayRecord, limits: Limits) -> Server:
        experiment = self.experiment
        model = experiment.world.model()
        self._layout = install(initial, model)
        method = experiment.method
        if not isinstance(experiment.aggregation, Flat):
            raise ValueError("MethodStrategy combines updates in the ServerApp's process: use aggregation=flat")

        def emit(t: float, name: str, fields: object) -> None:
            if name == "combined":
                log.info("[%.1f s] %s", t, fields)

        return Server(method, method.space.begin(model), experiment.clients, limits, experiment.seed, emit)

    def _arrays(self, server: Server) -> ArrayRecord:
        model = self.experiment.world.model()
        server.space.restore(model, server.state)
        return self._layout.record(model.module)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._no_rounds()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self._no_rounds()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._no_rounds()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        self._no_rounds()

    def _no_rounds(self) -> NoReturn:
        raise TypeError("a fedhet method has a schedule of its own, not rounds: call start(grid, arrays, num_rounds)")
