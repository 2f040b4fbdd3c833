"""One job on a device: install, work, extract, send. Independent of how messages travel; the same code runs on a phone
and in a worker process of a simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from fedhet import native
from fedhet.bases import AbstractTransform
from fedhet.engine.method import Method
from fedhet.model.batch_joining import Joined
from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.numerics.rng import number, seeded
from fedhet.numerics.tree import FlatTree
from fedhet.protocols import BatchedWork, Shard
from fedhet.types import ClientId, Job, Memory, Tree, Update

Memories = dict[str, Memory]
"""A client's memory of each plug-in that has one: "work", "space" and the transforms by slot ("codec.0")."""

BATCHED_MODEL_BYTES = 1 << 23
"""Largest total size of models that are trained at once: more would evict each other from the cache."""

CLIENT_STATE_PREFIX = "kept."
"""Prefix of leaves that a space puts into `Model.extras` for this client's next job."""

METRIC_PREFIX = "told."
"""Prefix of numbers that a space puts into `Model.extras` for the update's metrics."""


class World(Protocol):
    """The data of a device's clients."""

    def shard(self, client: ClientId, turn: int) -> Shard: ...


@dataclass
class Device:
    """A method's client half with one model, reused for every job of this process."""

    method: Method
    model: Model
    world: World
    seed: int
    _steppers: dict[int, native.BatchedStepper | None] = field(default_factory=dict)
    _batched_work: BatchedWork | None = field(init=False)

    def __post_init__(self) -> None:
        method, model = self.method, self.model
        plain = all(type(transform).send is AbstractTransform.send for _, transform in method.transforms)
        complete = model.perceptron is not None and len(model.flat) == model.perceptron.size
        work = method.work if isinstance(method.work, BatchedWork) and method.work.can_batch else None
        able = plain and complete and 2 * model.flat.nbytes <= BATCHED_MODEL_BYTES and "flat" in method.space.gives
        self._batched_work = work if able else None

    @property
    def can_batch(self) -> bool:
        """Whether `run_batch` can run jobs: the model is a perceptron with the standard loss and much smaller than the
        cache, the space sends the complete model as one vector, no transform changes it, and the work can batch."""
        return self._batched_work is not None

    def answer(self, job: Job, payload: Tree, memories: Memories) -> Update:
        """Run one job and return its update. `memories` is changed in place. Raises what the work raises, and
        ValueError if a metric is not finite."""
        method, model = self.method, self.model
        shard = self.world.shard(job.client, job.turn)
        if model.batch_statistics:
            shard = Joined(shard)
        torch_seed = number(self.seed, "torch", job.client, job.turn)
        model.reset(torch_seed)
        model.extras.clear()
        model.extras.update(memories.pop("space", {}))
        method.space.install(model, payload, job)
        memories["space"] = _client_state(model)
        memory = memories.setdefault("work", {})
        # Dropout and other randomness inside modules reads global streams: give each job its own.
        with seeded(torch_seed, libraries=model.foreign or not type(method.work).__module__.startswith("clients.")):
            metrics = method.work.run(model, shard, job, memory)
        model.settle()
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"training diverged: {bad[0]} is {metrics[bad[0]]}")
        delta = method.space.extract(model, payload)
        update = Update(job, delta, float(len(shard)), metrics={**metrics, **_space_metrics(model)})
        memories["space"] = _client_state(model)
        return self._send(update, memories)

    def run_batch(
        self, jobs: Sequence[Job], payloads: Sequence[Tree], buffers: Sequence[memoryview | None] = ()
    ) -> list[Update] | None:
        """Run jobs of several clients without memories; None if they need `answer`. Both give the same bits.

        They run in groups, one after the other; the clients of a group have equal numbers of samples and steps, and
        start from one version. `buffers` are memory where the deltas may be stored, encoded as their payloads.
        """
        work, model = self._batched_work, self.model
        if work is None:
            return None
        befores = [p.flat for p in payloads if isinstance(p, FlatTree) and p.schema == model.schema]
        shards = [self.world.shard(job.client, job.turn) for job in jobs]
        if len(befores) < len(jobs):
            return None
        updates: list[Update] = []
        keys = [(len(shard), job.budget.steps, job.version) for shard, job in zip(shards, jobs, strict=True)]
        free = buffers or [None] * len(jobs)
        for group in _groups(keys, BATCHED_MODEL_BYTES // model.flat.nbytes):
            rows = self._stepper(len(jobs[group]))
            if rows is None:
                return None
            deltas = [wire_format.blank(model.schema, buffer) for buffer in free[group]]
            rows.begin(befores[group], [delta.flat for delta in deltas])
            reported = work.run_batch(rows, shards[group], jobs[group])
            rows.finish()
            if reported is None or not all(math.isfinite(v) for metrics in reported for v in metrics.values()):
                return None  # one after the other, only the job whose training diverged fails
            for job, delta, shard, metrics in zip(jobs[group], deltas, shards[group], reported, strict=True):
                updates.append(Update(job, delta, float(len(shard)), metrics=metrics))
        return updates

    def _stepper(self, count: int) -> native.BatchedStepper | None:
        if count not in self._steppers:
            one = self.model.perceptron
            self._steppers[count] = None if one is None else native.batched_stepper(one, count)
        return self._steppers[count]

    def _send(self, update: Update, memories: Memories) -> Update:
        """Apply `send` of all transforms; empty memories are deleted."""
        for name, transform in self.method.transforms:
            update = transform.send(update, memories.setdefault(name, {}))
        for name in [n for n, m in memories.items() if not m]:
            del memories[name]
        return update


def _groups(keys: Sequence[object], most: int) -> Iterator[slice]:
    """Slices of consecutive equal keys, each of at most `most` elements."""
    at = 0
    for _, run in groupby(keys):
        end = at + sum(1 for _ in run)
        for start in range(at, end, most):
            yield slice(start, min(start + most, end))
        at = end


def _space_metrics(model: Model) -> dict[str, float]:
    """The metrics that the space put into `Model.extras`."""
    return {
        n.removeprefix(METRIC_PREFIX): float(leaf) for n, leaf in model.extras.items() if n.startswith(METRIC_PREFIX)
    }


def _client_state(model: Model) -> Memory:
    """The leaves that the space put into `Model.extras` for the client's next job."""
    return {name: leaf for name, leaf in model.extras.items() if name.startswith(CLIENT_STATE_PREFIX)}
