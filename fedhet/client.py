"""One job on a device: install, work, extract, send. Pure of carriers; the same on a phone and in a worker process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from fedhet.compose import Method
from fedhet.model import Model
from fedhet.protocols import Shard
from fedhet.streams import number
from fedhet.types import ClientId, Job, Memory, Tree, Update

Memories = dict[str, Memory]
"""A client's memory of each plug-in that keeps one: "work", "space" and the layers by slot."""

KEPT = "kept."
"""Of what a space leaves in `Model.extras` for this client's next job."""


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

    def answer(self, job: Job, payload: Tree, memories: Memories) -> Update:
        """Do the job. `memories` is changed in place. Raises what the work raises, and ValueError for bad metrics."""
        method, model = self.method, self.model
        shard = self.world.shard(job.client, job.turn)
        model.extras.clear()
        model.extras.update(memories.pop("space", {}))
        method.space.install(model, payload, job)
        memories["space"] = {name: leaf for name, leaf in model.extras.items() if name.startswith(KEPT)}
        memory = memories.setdefault("work", {})
        # Dropout and other randomness inside modules reads torch's global stream: give each job its own, and put the
        # caller's back. (torch.manual_seed and fork_rng walk all accelerators and cost more than a small job.)
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(number(self.seed, "torch", job.client, job.turn))
        try:
            metrics = method.work.run(model, shard, job, memory)
        finally:
            torch.default_generator.set_state(before)
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"training diverged: {bad[0]} is {metrics[bad[0]]}")
        update = Update(job, method.space.extract(model, payload), float(len(shard)), metrics=metrics)
        for name, layer in method.layers:
            update = layer.send(update, memories.setdefault(name, {}))
        for name in [n for n, m in memories.items() if not m]:
            del memories[name]
        return update
