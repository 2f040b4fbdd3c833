"""An executor whose workers are Ray actors, one processor each, on as many machines as a Ray cluster has.

What is true of the pool on one machine is true here: workers stay, a payload that many tasks share is put into the
object store once, large arrays travel apart from everything else and are read where they lie, and a worker that dies
is a failed task with a cause. Machines of one make give equal bits; every worker must run the code the server runs.
Of workers on the server's machine one that is stopped or computes nothing for minutes is given up as well; of those on
others Ray tells which have died.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from flwr.app import Context, Error, Message
from ray.exceptions import RayActorError

from fedhet.flower.compat import ErrorCode
from fedhet.flower.execution import App, Outcome, execute
from fedhet.provenance import source_tree
from fedhet.simulation.message_packing import pack, unpack
from fedhet.simulation.worker_pool import DEPTH
from fedhet.system import network_port
from fedhet.system import process_liveness as pulse
from fedhet.system.process_liveness import Liveness

PATIENCE = 120.0
"""Seconds to wait for a first worker: machines may be starting."""


def reachable(address: str) -> None:
    """Raises ConnectionError if nothing listens at host:port: Ray itself would try for minutes."""
    if ":" in address:
        try:
            socket.create_connection(network_port.endpoint(address), timeout=10.0).close()
        except (OSError, ValueError) as error:
            raise ConnectionError(f"no Ray cluster at {address}: {error}") from None


class Actor:
    """A worker's life in a process of its own: builds the app once, then runs one message after the other."""

    def __init__(self, make: Callable[[], App]) -> None:
        source_tree.on_path()
        torch.set_num_threads(1)
        self._app = make()

    def hello(self) -> tuple[str, str, int]:
        """The fingerprint of the code this worker runs, the place its process is at, and its number there."""
        return source_tree.fingerprint(), pulse.place(), os.getpid()

    def run(self, body: bytes, *arrays: np.ndarray) -> tuple[bytes, list[np.ndarray]]:
        """A packed message and context in, a packed reply and state out; large arrays beside them both ways."""
        message, context = unpack(body, [memoryview(a) for a in arrays])  # type: ignore[arg-type]
        had = bool(context.state)
        outcome = execute(self._app, message, context)
        large: list[np.ndarray] = []

        def put(data: Any) -> tuple[int, int]:
            large.append(np.frombuffer(data, np.uint8))
            return len(large), len(data)

        answer, _ = pack((outcome.reply, outcome.state if had or outcome.state else None), put)
        return answer, large


@dataclass(slots=True)
class _Task:
    message: Message
    context: Context
    urgency: int
    body: bytes = b""
    arrays: list[Any] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Worker:
    name: str
    actor: Any
    hello: Any
    ready: bool = False
    pulse: Liveness | None = None
    """Of a worker on this machine."""
    held: list[int] = field(default_factory=list)


class Cluster:
    """An `Executor` on Ray. `make` builds the client app inside every worker and must be importable there.

    `address` is that of a running cluster ("auto": the one this machine belongs to); "" starts Ray on this machine
    alone. `workers` is their number, 0 for one on every processor of the cluster. Raises ConnectionError if there is
    no cluster, RuntimeError if a worker runs other code or none answers for `PATIENCE` seconds.
    """

    def __init__(self, make: Callable[[], App], *, address: str = "auto", workers: int = 0) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers} must be 0 (one on every processor) or more")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._make, self._started = make, not ray.is_initialized()
        if self._started:
            reachable(address)
            quiet = {"log_to_driver": False, "logging_level": "ERROR"}
            try:
                ray.init(**quiet, **({"address": address} if address else {"include_dashboard": False}))
            except ConnectionError:
                raise ConnectionError(
                    f"no Ray cluster at {address}: start one with `ray start --head`, or give the "
                    "transport.address=host:port of its head, or transport.address='' for this machine alone"
                ) from None
        self._tasks: dict[int, _Task] = {}
        self._heard = 0.0
        self._done: dict[int, Outcome] = {}
        self._queue: list[tuple[int, int]] = []
        self._under_way: dict[Any, tuple[int, _Worker]] = {}
        self._written: dict[int, tuple[Any, Any, int]] = {}
        self.deaths = 0
        count = workers or int(ray.cluster_resources().get("CPU", 1))
        self._workers = [self._spawn(f"worker {n}") for n in range(count)]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, number: int, urgency: int, message: Message, context: Context) -> None:
        """Take a task on. Lower urgency is computed earlier."""
        self._tasks[number] = _Task(message, context, urgency)
        heapq.heappush(self._queue, (urgency, number))
        self._collect(0.0)
        self._feed()

    def result(self, number: int) -> Outcome:
        """Wait for a task's outcome and forget it. Raises KeyError if it was never submitted."""
        self._heard = time.monotonic()
        while number not in self._done:
            if number not in self._tasks:
                raise KeyError(number)
            self._feed()
            if not self._collect(pulse.LOOK_S):
                self._look()
        self._feed()
        outcome: Outcome = self._done.pop(number)
        return outcome

    def close(self) -> None:
        """End the workers, and Ray if it was started here; tasks that are not done are dropped."""
        for worker in self._workers:
            with contextlib.suppress(RayActorError):
                ray.kill(worker.actor)
        self._workers.clear()
        self._under_way.clear()
        self._written.clear()
        if self._started:
            ray.shutdown()

    def _spawn(self, name: str) -> _Worker:
        # the checkout's root for workers on this machine; elsewhere fedhet is installed and finds its own
        path = os.pathsep.join(filter(None, [str(source_tree.root()), os.environ.get("PYTHONPATH", "")]))
        options = {
            "num_cpus": 1,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
        }
        actor = ray.remote(Actor).options(**options).remote(self._make)
        return _Worker(name, actor, actor.hello.remote())

    def _feed(self) -> None:
        while self._queue:
            free = [w for w in self._workers if w.ready and len(w.held) < DEPTH]
            if not free:
                return
            _, number = heapq.heappop(self._queue)
            task, worker = self._tasks[number], min(free, key=lambda w: len(w.held))
            if not task.body:
                task.body, _ = pack((task.message, task.context), lambda data, task=task: self._share(task, data))  # type: ignore[misc]
            if worker.pulse is not None and not worker.held:
                worker.pulse.beat()
            self._under_way[worker.actor.run.remote(task.body, *task.arrays)] = (number, worker)
            worker.held.append(number)

    def _share(self, task: _Task, data: Any) -> tuple[int, int]:
        """Put an array's data into the object store; one object is put once, however many tasks use it."""
        token = id(data)
        if token not in self._written:
            self._written[token] = (data, ray.put(np.frombuffer(data, np.uint8)), 0)
        held, reference, users = self._written[token]
        self._written[token] = (held, reference, users + 1)
        task.shared.append(token)
        task.arrays.append(reference)
        return len(task.arrays), len(data)

    def _collect(self, timeout: float) -> bool:
        """Take in what workers have finished or said; wait up to `timeout` seconds for one. Whether there was any."""
        greetings = {w.hello: w for w in self._workers if not w.ready}
        waiting = [*self._under_way, *greetings]
        if not waiting:
            return False
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout)
        if timeout and ready:  # the others that are done as well
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in ready:
            if reference in greetings:
                self._greet(greetings[reference])
            elif reference in self._under_way:
                self._take(reference)
        if ready:
            self._heard = time.monotonic()
        return bool(ready)

    def _look(self) -> None:
        """Nothing comes: give up workers of this machine that are stuck. Raises RuntimeError if there is none at work
        and none has come for `PATIENCE` seconds."""
        if not self._under_way and time.monotonic() > self._heard + PATIENCE:
            raise RuntimeError(f"no worker of the Ray cluster has answered for {PATIENCE:g} seconds")
        for worker in [w for w in self._workers if w.held and w.pulse is not None and w.pulse.stuck()]:
            ray.kill(worker.actor)
            self._bury(worker, RuntimeError(f"it computed nothing for {pulse.PATIENCE_S:g} seconds"))

    def _greet(self, worker: _Worker) -> None:
        try:
            code, place, number = ray.get(worker.hello)
        except RayActorError as error:
            self._bury(worker, error)
            return
        if code != source_tree.fingerprint():
            raise RuntimeError(f"{worker.name} runs other code than the server: install the same fedhet everywhere")
        worker.ready = True
        worker.pulse = Liveness(number) if place == pulse.place() else None

    def _take(self, reference: Any) -> None:
        number, worker = self._under_way[reference]
        try:
            body, arrays = ray.get(reference)
        except RayActorError as error:
            self._bury(worker, error)
            return
        del self._under_way[reference]
        worker.held.remove(number)
        if worker.pulse is not None:
            worker.pulse.beat()
        reply, state = unpack(body, [memoryview(a) for a in arrays])
        for array in [a for r in state.array_records.values() for a in r.values()] if state else []:
            array.data = bytes(array.data)  # states outlive answers
        self._finish(number, Outcome(reply, self._tasks[number].context.state if state is None else state))

    def _finish(self, number: int, outcome: Outcome) -> None:
        for token in self._tasks.pop(number).shared:
            data, reference, users = self._written.pop(token)
            if users > 1:
                self._written[token] = (data, reference, users - 1)
        self._done[number] = outcome

    def _bury(self, worker: _Worker, error: Exception) -> None:
        """A worker died: its running task failed, those behind it go back, a new worker is asked for."""
        self.deaths += 1
        if self.deaths > 10 * len(self._workers) and not any(w.ready for w in self._workers):
            raise RuntimeError(f"workers of the Ray cluster die as they start: {error}") from error
        for position, number in enumerate(worker.held):
            task = self._tasks[number]
            if position == 0:
                cause = str(error).strip().splitlines()[0][:120]
                reply = Message(
                    Error(ErrorCode.CLIENT_APP_CRASHED, f"{worker.name} died ({cause})"), reply_to=task.message
                )
                self._finish(number, Outcome(reply, task.context.state))
            else:
                heapq.heappush(self._queue, (task.urgency, number))
        self._under_way = {r: (n, w) for r, (n, w) in self._under_way.items() if w is not worker}
        self._workers.remove(worker)
        self._workers.append(self._spawn(worker.name))
