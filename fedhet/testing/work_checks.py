"""The checks of a work: correct metrics, training in place, equal bits for equal jobs, storable memory."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import torch

from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.protocols import Work
from fedhet.testing.checking import Check, ensure, option
from fedhet.types import Budget, Job, Memory, Tree

CLASSES, SAMPLES = 3, 20
SPACES = ("full", "control")
"""Spaces to combine with a work: the first that gives what it needs is used."""


class Device:
    """A device over several jobs: `turn(memory)` is its next job, from a newer model of the server."""

    def __init__(self, work: Work) -> None:
        self.work = work
        fit = [space for space in (option("space", name) for name in SPACES) if work.needs <= space.gives]
        ensure(bool(fit), f"it needs {sorted(work.needs)}, which neither of the spaces {', '.join(SPACES)} gives")
        self.space = fit[0]
        rng = np.random.default_rng(0)
        self.x = torch.from_numpy(rng.normal(size=(SAMPLES, 1, 3, 3))).float()
        self.y = torch.from_numpy(rng.integers(0, CLASSES, SAMPLES))
        self.state = self.space.begin(self.fresh())
        self.turns = 0

    def fresh(self) -> Model:
        """The initial model of all clients."""
        vision: Any = import_module("clients.models.vision")
        build: Any = import_module("clients.models.build").build
        model: Model = build(lambda **given: vision.mlp(hidden=[8], **given), (1, 3, 3), CLASSES, 0)
        return model

    def turn(self, memory: Memory, steps: int = 6) -> tuple[Model, Tree, dict[str, float]]:
        """The model after the next job, its delta and its metrics."""
        shards: Any = import_module("clients.data.shard")
        job = Job(self.turns, 0, self.turns, self.turns, Budget(steps=steps), 0.0)
        payload, model = self.space.offer(self.state, job), self.fresh()
        self.space.install(model, payload, job)
        shard = shards.ClientShard(self.x, self.y, np.arange(SAMPLES), 0, 0, self.turns)
        metrics = dict(self.work.run(model, shard, job, memory))
        delta = self.space.extract(model, payload)
        self.state = self.space.merge(self.state, self.space.combine([delta], [0.5]))
        self.turns += 1
        return model, delta, metrics


def metrics(work: Work) -> None:
    """Metrics are finite, and the loss decreases."""
    life, memory = Device(work), dict[str, torch.Tensor]()
    first, *_, last = (life.turn(memory)[2] for _ in range(30))
    for one in (first, last):
        reported: dict[str, object] = dict(one)
        for name, value in reported.items():
            sound = isinstance(value, float) and math.isfinite(value)
            ensure(sound, f"the metric {name} is {value!r}, needs a finite float")
        ensure("loss" in one, f'it reports {sorted(one)} and no "loss"')
    ensure(0 < last["loss"] < first["loss"], f"the loss goes from {first['loss']} to {last['loss']} in 30 jobs")


def in_place(work: Work) -> None:
    """Training changes the given model in place."""
    device = Device(work)
    model, _, _ = device.turn({})
    ensure(not torch.equal(model.flat, device.fresh().flat), "the model is as it was before")
    parameters = torch.cat([p.detach().reshape(-1) for p in model.module.parameters()])
    ensure(torch.equal(parameters, model.params), "the module and the flat buffer have other numbers")
    shared = next(model.module.parameters()).data_ptr() == model.flat.data_ptr()
    ensure(shared, "the module's parameters do not lie in the flat buffer any more")


def repeat(work: Work) -> None:
    """The same job gives the same bits."""
    (_, first, one), (_, second, two) = (Device(work).turn({}) for _ in range(2))
    ensure(wire_format.encode(first) == wire_format.encode(second), "the same job gives another delta a second time")
    ensure(one == two, f"the same job reports {one} and {two}")


def steps(work: Work) -> None:
    """More steps give a larger displacement."""
    one, two = (wire_format.encode(Device(work).turn({}, steps=n)[1]) for n in (1, 2))
    ensure(one != two, "one step and two steps give the same delta")


def memory(work: Work) -> None:
    """A memory that was stored between jobs gives the same bits."""
    straight, broken = Device(work), Device(work)
    kept: Memory = {}
    stored: Memory = {}
    for turn in range(4):
        _, expected, _ = straight.turn(kept)
        _, delta, _ = broken.turn(stored)
        same = wire_format.encode(delta) == wire_format.encode(expected)
        ensure(same, f"job {turn} gives other bits if its memory was written to disk and read before")
        stored = dict(wire_format.open_tree(bytearray(wire_format.encode(stored)))) if stored else {}


def no_view(work: Work) -> None:
    """Stored values are not views of the model."""
    remembered: Memory = {}
    model, _, _ = Device(work).turn(remembered)
    before = {name: leaf.clone() for name, leaf in remembered.items()}
    model.flat.zero_()
    model.grad.fill_(7.0)
    for name, leaf in before.items():
        ensure(torch.equal(remembered[name], leaf), f"{name} in its memory changes with the model")


CHECKS: dict[str, Check] = {
    "metrics": metrics,
    "in place": in_place,
    "repeat": repeat,
    "steps": steps,
    "memory": memory,
    "no view": no_view,
}
