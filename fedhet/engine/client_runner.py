"""One job on a device: install, work, extract, send. Pure of carriers; the same on a phone and in a worker process."""

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
"""A client's memory of each plug-in that keeps one: "work", "space" and the layers by slot."""

BESIDE = 1 << 23
"""Bytes of models trained side by side: more would push each other out of the cache."""

KEPT = "kept."
"""Of what a space leaves in `Model.extras` for this client's next job."""

TOLD = "told."
"""Of numbers that a space leaves there for the update's metrics."""


class World(Protocol):
    """What a device holds: its data."""

    def shard(self, client: ClientId, turn: int) -> Shard: ...


@dataclass
class Device:
    """A method's client half with one model, reused for every job this process runs."""

    method: Method
    model: Model
    world: World
    seed: int
    _rooms: dict[int, native.BatchedStepper | None] = field(default_factory=dict)
    _together: BatchedWork | None = field(init=False)

    def __post_init__(self) -> None:
        method, model = self.method, self.model
        plain = all(type(layer).send is AbstractTransform.send for _, layer in method.transforms)
        whole = model.perceptron is not None and len(model.flat) == model.perceptron.size
        work = method.work if isinstance(method.work, BatchedWork) and method.work.can_batch else None
        able = plain and whole and 2 * model.flat.nbytes <= BESIDE and "flat" in method.space.gives
        self._together = work if able else None

    @property
    def can_batch(self) -> bool:
        """Whether `together` can be asked: the model is a perceptron with the standard loss and small beside a cache,
        the space sends the whole model as one vector, nothing is done to it on its way, and the work can."""
        return self._together is not None

    def answer(self, job: Job, payload: Tree, memories: Memories) -> Update:
        """Do the job. `memories` is changed in place. Raises what the work raises, and ValueError for bad metrics."""
        method, model = self.method, self.model
        shard = self.world.shard(job.client, job.turn)
        if model.batch_statistics:
            shard = Joined(shard)
        lots = number(self.seed, "torch", job.client, job.turn)
        model.reset(lots)
        model.extras.clear()
        model.extras.update(memories.pop("space", {}))
        method.space.install(model, payload, job)
        memories["space"] = _kept(model)
        memory = memories.setdefault("work", {})
        # Dropout and other randomness inside modules reads global streams: give each job its own.
        with seeded(lots, libraries=model.foreign or not type(method.work).__module__.startswith("clients.")):
            metrics = method.work.run(model, shard, job, memory)
        model.settle()
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"training diverged: {bad[0]} is {metrics[bad[0]]}")
        delta = method.space.extract(model, payload)
        update = Update(job, delta, float(len(shard)), metrics={**metrics, **_told(model)})
        memories["space"] = _kept(model)
        return self._send(update, memories)

    def run_batch(
        self, jobs: Sequence[Job], payloads: Sequence[Tree], rooms: Sequence[memoryview | None] = ()
    ) -> list[Update] | None:
        """Jobs of several clients without memories, or None if they are for `answer`. No bit depends on which.

        They are done in groups, one after the other, whose clients have equal numbers of samples and steps from one
        version. `rooms` are where the deltas may be laid, as their payloads.
        """
        work, model = self._together, self.model
        if work is None:
            return None
        befores = [p.flat for p in payloads if isinstance(p, FlatTree) and p.schema == model.schema]
        shards = [self.world.shard(job.client, job.turn) for job in jobs]
        if len(befores) < len(jobs):
            return None
        updates: list[Update] = []
        alike = [(len(shard), job.budget.steps, job.version) for shard, job in zip(shards, jobs, strict=True)]
        free = rooms or [None] * len(jobs)
        for group in _groups(alike, BESIDE // model.flat.nbytes):
            rows = self._room(len(jobs[group]))
            if rows is None:
                return None
            deltas = [wire_format.blank(model.schema, room) for room in free[group]]
            rows.begin(befores[group], [delta.flat for delta in deltas])
            told = work.run_batch(rows, shards[group], jobs[group])
            rows.finish()
            if told is None or not all(math.isfinite(v) for metrics in told for v in metrics.values()):
                return None  # one by one the one whose training diverged fails alone
            for job, delta, shard, metrics in zip(jobs[group], deltas, shards[group], told, strict=True):
                updates.append(Update(job, delta, float(len(shard)), metrics=metrics))
        return updates

    def _room(self, count: int) -> native.BatchedStepper | None:
        if count not in self._rooms:
            one = self.model.perceptron
            self._rooms[count] = None if one is None else native.batched_stepper(one, count)
        return self._rooms[count]

    def _send(self, update: Update, memories: Memories) -> Update:
        """What the layers make of an update on its way; memories that emptied are forgotten."""
        for name, layer in self.method.transforms:
            update = layer.send(update, memories.setdefault(name, {}))
        for name in [n for n, m in memories.items() if not m]:
            del memories[name]
        return update


def _groups(keys: Sequence[object], most: int) -> Iterator[slice]:
    """Runs of equal keys, no longer than `most`."""
    at = 0
    for _, run in groupby(keys):
        end = at + sum(1 for _ in run)
        for start in range(at, end, most):
            yield slice(start, min(start + most, end))
        at = end


def _told(model: Model) -> dict[str, float]:
    """What a space has to say of the job."""
    return {n.removeprefix(TOLD): float(leaf) for n, leaf in model.extras.items() if n.startswith(TOLD)}


def _kept(model: Model) -> Memory:
    """What a space has left for the client's next job."""
    return {name: leaf for name, leaf in model.extras.items() if name.startswith(KEPT)}
