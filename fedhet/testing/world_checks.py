"""What every model factory, data set and transport promises."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhet.config import composition
from fedhet.engine.method import Misfit
from fedhet.model.flat_model import Model
from fedhet.numerics.rng import seeded
from fedhet.runs.experiment import Experiment, Transport
from fedhet.testing.checking import Check, close, ensure

SHAPE, CLASSES, STEPS = (1, 8, 8), 4, 60
RUN = ["debug=quick", "stop.versions=2", "fleet=homogeneous", "fleet.clients=2", "model=softmax", "budget.steps=2"]
"""A run of two synchronous rounds."""


@dataclasses.dataclass(frozen=True)
class Factory:
    """A model's factory with the inputs that it is for: `shape` of one sample, `classes`, and whether inputs are whole
    numbers below `vocabulary` (None: numbers)."""

    make: Callable[..., nn.Module]
    shape: tuple[int, ...] = SHAPE
    classes: int = CLASSES
    vocabulary: int | None = None

    def model(self, seed: int = 0) -> Model:
        """A model, as a world builds it."""
        build: Any = import_module("clients.models.build").build
        made: Model = build(self.make, self.shape, self.classes, seed, self.inputs(1))
        return made

    def inputs(self, count: int) -> torch.Tensor:
        """Random samples (count, *shape)."""
        rng = np.random.default_rng(0)
        if self.vocabulary is not None:
            return torch.from_numpy(rng.integers(0, self.vocabulary, (count, *self.shape)))
        return torch.from_numpy(rng.normal(size=(count, *self.shape))).float()


def bits(factory: Factory) -> None:
    """The same seed gives the same first parameters, another seed others; no other random stream is touched."""
    one, two, other = factory.model(), factory.model(), factory.model(1)
    ensure(torch.equal(one.flat, two.flat), "two models of one seed begin with other parameters")
    ensure(not torch.equal(one.flat, other.flat), "models of two seeds begin with the same parameters")
    ensure(one.params.data_ptr() != two.params.data_ptr(), "two models share their parameters")
    ensure(bool(torch.isfinite(one.flat).all()), "parameters are not finite to begin with")
    with seeded(7):
        expected = torch.rand(3)
    with seeded(7):
        factory.model()
        close(torch.rand(3), expected, "random numbers drawn after a model was built")


def outputs(factory: Factory) -> None:
    """Outputs are a finite floating-point number for every class, and the same for the same inputs."""
    model, x = factory.model(), factory.inputs(5)
    y = model.predict(x)
    ensure(y.is_floating_point(), f"outputs are {y.dtype}, needs floating-point logits")
    fits = len(y) == 5 and y.shape[-1] == factory.classes
    ensure(fits, f"for inputs {tuple(x.shape)} outputs are {tuple(y.shape)}, needs (5, {factory.classes})")
    ensure(bool(torch.isfinite(y).all()), "outputs are not finite")
    ensure(torch.equal(model.predict(x), y), "evaluating the same inputs twice gives other outputs")
    close(model.predict(x[:2]), y[:2], "outputs of two samples, alone and among five", 1e-4, 1e-5)


def trains(factory: Factory) -> None:
    """Gradient descent brings the loss down."""
    model, x = factory.model(), factory.inputs(8)
    target = torch.from_numpy(np.random.default_rng(1).integers(0, factory.classes, model.predict(x).shape[:-1]))
    first = float(model.gradient(x, target))
    ensure(bool(model.grad.any()), "no parameter has a gradient")
    losses = [first, *(float(model.descend(x, target, 0.05)) for _ in range(STEPS))]
    ensure(all(np.isfinite(losses)), f"the loss is not finite after {int(np.isfinite(losses).sum())} steps")
    ensure(losses[-1] < first, f"the loss goes from {first:g} to {losses[-1]:g} in {STEPS} steps")


MODEL_CHECKS: dict[str, Check] = {"bits": bits, "outputs": outputs, "trains": trains}


def contents(data: Any) -> None:
    """Inputs are finite and of one shape, labels are classes, no split is empty."""
    found = data.load()
    for part in ("x_train", "y_train", "x_test", "y_test"):
        tensor = getattr(found, part)
        ensure(isinstance(tensor, torch.Tensor) and len(tensor) > 0, f"{part} is empty or no tensor")
        if tensor.is_floating_point():
            bad = int((~torch.isfinite(tensor)).sum())
            ensure(bad == 0, f"{part} has {bad} numbers that are not finite")
    for split in ("train", "test"):
        x, y = getattr(found, f"x_{split}"), getattr(found, f"y_{split}")
        ensure(len(x) == len(y), f"{split}: {len(x)} inputs and {len(y)} labels")
        ensure(tuple(x.shape[1:]) == found.input_shape, f"x_{split} has inputs of {tuple(x.shape[1:])}")
        ensure(y.dtype == torch.int64, f"y_{split} is {y.dtype}, needs int64")
        low, high = int(y.min()), int(y.max())
        ensure(low >= 0 and high < found.classes, f"y_{split} goes from {low} to {high}, classes={found.classes}")


def repeats(data: Any) -> None:
    """Loading again gives the same data and the same fingerprint."""
    one, two = data.load(), data.load()
    ensure(bool(one.fingerprint), "it has no fingerprint")
    ensure(one.fingerprint == two.fingerprint, f"fingerprints {one.fingerprint} and {two.fingerprint} of one data set")
    for part in ("x_train", "y_train", "x_test", "y_test"):
        ensure(torch.equal(getattr(one, part), getattr(two, part)), f"{part} is another one when it is loaded again")


def divides(data: Any) -> None:
    """A world divides it among clients, and a client's mini-batches are its own samples."""
    cfg = composition.resolved(composition.compose(["partition=iid"]))
    partition = composition.instantiate(cfg["partition"], "partition")
    world: Any = import_module("clients.world").SimulatedWorld
    made = world(data, partition, nn.Identity, clients=3, seed=0)
    counts = made.examples()
    ensure(int(counts.sum()) == len(made.dataset.x_train), f"{counts.tolist()} of {len(made.dataset.x_train)} samples")
    x, y = next(made.shard(0, 0).batches(4))
    ensure(len(x) == len(y) == min(4, int(counts[0])), f"a mini-batch of 4 has {len(x)} inputs and {len(y)} labels")


DATA_CHECKS: dict[str, Check] = {"contents": contents, "repeats": repeats, "divides": divides}


def named(transport: Transport) -> None:
    """It has a name, and can be asked whether a run is possible without starting one."""
    name: object = transport.name
    ensure(isinstance(name, str) and bool(name), f"name is {name!r}, needs a word that results call it by")
    experiment = Experiment.of(composition.resolved(composition.compose(RUN)))
    try:
        transport.check(dataclasses.replace(experiment, transport=transport))
    except Misfit as error:
        raise AssertionError(f"it cannot run here: {error}") from error


def carries(transport: Transport) -> None:
    """A run of synchronous rounds ends as in virtual time: the same model, and the whole record in its folder."""
    cfg = composition.resolved(composition.compose(RUN))
    with tempfile.TemporaryDirectory(prefix="fedhet-check-") as folder:
        plain = Experiment.of(cfg).run(Path(folder) / "plain").row
        carried = dataclasses.replace(Experiment.of(cfg), transport=transport).run(Path(folder) / "carried")
        for name in ("events.jsonl", "metrics.jsonl", "model.safetensors", "result.json"):
            ensure((carried.path / name).is_file(), f"the run folder has no {name}")
        for key in ("weights_sha256", "versions", "accuracy"):
            ensure(carried.row[key] == plain[key], f"{key} is {carried.row[key]}, in virtual time {plain[key]}")
        ensure(carried.row["transport"] == transport.name, f"the result names transport {carried.row['transport']}")


TRANSPORT_CHECKS: dict[str, Check] = {"named": named, "carries": carries}
