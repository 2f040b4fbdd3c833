"""The checks of a space: sending, training, combining and merging give the expected model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedhet.engine.answer import Answer
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.numerics.tree import Schema
from fedhet.population.roster import Clients
from fedhet.protocols import Space, Work
from fedhet.testing.checking import Check, close, ensure, option
from fedhet.testing.hostile import fitting, misfitting
from fedhet.types import Budget, Job, Tree, Update

COUNT = 4
PROBES = torch.from_numpy(np.random.default_rng(9).normal(size=(20, 6)))
"""Inputs on which two models are compared: more of them than any layer has inputs."""
WORKS = ("sgd", "scaffold", "feddyn")
"""Works to combine with a space: the first whose needs the space meets, with the most of them, is used."""


def fresh_model(seed: int = 0) -> Model:
    """A small perceptron in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double())


@dataclass(frozen=True)
class Samples:
    """A client's ten random samples."""

    seed: int

    def __len__(self) -> int:
        return 10

    def all_samples(self) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(self.seed)
        return torch.from_numpy(rng.normal(size=(10, 6))), torch.from_numpy(rng.integers(0, 3, 10))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.all_samples()

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(self.seed)


class Federation:
    """A space, a work that fills it, and the server's state."""

    def __init__(self, space: Space, work: Work | None = None) -> None:
        if work is None:
            works = [option("work", name) for name in WORKS]
            fit = [one for one in works if one.needs <= space.gives]
            ensure(bool(fit), f"it gives {sorted(space.gives)}, which no work is content with")
            work = max(fit, key=lambda one: len(one.needs - {"coordinates"}))
        self.space, self.work, self.state = space, work, space.begin(fresh_model())

    def dense(self, state: Tree) -> np.ndarray:
        """The parameters of a state's full model."""
        model = fresh_model(1)
        self.space.restore(model, state)
        return model.flat.numpy().copy()

    def outputs(self, state: Tree) -> np.ndarray:
        """The outputs of a state's full model for the probes."""
        model = fresh_model(1)
        self.space.restore(model, state)
        return model.predict(PROBES).numpy()

    def moved(self, delta: Tree) -> np.ndarray:
        """The change of the model by merging a delta."""
        step: np.ndarray = self.dense(self.space.merge(self.state, delta)) - self.dense(self.state)
        return step

    def sent(self, client: int) -> tuple[Model, Job, Tree]:
        """A device's model after its job, the job, and the update it sends."""
        job = Job(client, client, 0, 0, Budget(steps=3), 0.0)
        device, payload = fresh_model(2 + client), self.space.offer(self.state, job)
        self.space.install(device, payload, job)
        self.work.run(device, Samples(client), job, {})
        delta = self.space.extract(device, payload)
        found, expected = Schema.of(delta), self.space.expects(self.state, job)
        ensure(found == expected, f"`extract` gives {dict(found)}, `expects` says {dict(expected)}")
        return device, job, delta

    def trained(self, client: int) -> tuple[Model, Tree]:
        """A device's model after its job, and its delta as it enters a combination."""
        device, job, delta = self.sent(client)
        return device, self.space.decode_delta(self.state, job, delta)

    def deltas(self) -> list[Tree]:
        return [self.trained(client)[1] for client in range(COUNT)]


def begin(space: Space) -> None:
    """The first state restores the initial model."""
    federation = Federation(space)
    same = np.array_equal(federation.dense(federation.state), fresh_model().flat.numpy())
    ensure(same, "a model that `begin` made a state of and `restore` took it from has other numbers")


def merge(space: Space) -> None:
    """Merging what one device extracted gives that device's model."""
    federation = Federation(space)
    before = bytes(wire_format.encode(federation.state))
    device, delta = federation.trained(0)
    merged = federation.space.merge(federation.state, delta)
    ensure(wire_format.encode(federation.state) == before, "the state is written to")
    far = np.abs(federation.moved(delta)).max()
    ensure(far > 1e-3, f"training is meant to do something, and moves the model by {far}")
    close(federation.outputs(merged), device.predict(PROBES).numpy(), "the merged model's outputs", 1e-12, 1e-14)
    device.flat.zero_()
    ensure(np.abs(federation.moved(delta)).max() > 1e-3, "the delta is a view of the device's model")


def linear(space: Space) -> None:
    """Combining is linear."""
    federation = Federation(space)
    deltas, c = federation.deltas(), [0.7, -0.4, 0.2, 1.1]
    expected = sum(x * federation.moved(d) for x, d in zip(c, deltas, strict=True))
    close(federation.moved(space.combine(deltas, c)), expected, f"the sum with {c}", 1e-7, 1e-13)
    alone = space.combine(deltas[:1], [1.0])
    close(federation.moved(alone), federation.moved(deltas[0]), "one delta with coefficient 1", 1e-7, 1e-15)


def gram(space: Space) -> None:
    """Inner products are those of the dense models, symmetric and never negative."""
    federation = Federation(space)
    deltas = federation.deltas()
    found, rows = space.gram(deltas), np.stack([federation.moved(d) for d in deltas])
    ensure(found.dtype == np.float64, f"inner products are {found.dtype}, needs float64")
    close(found, rows @ rows.T, "inner products", 1e-9, 1e-13)
    ensure(np.array_equal(found, found.T), "inner products are not symmetric")
    least = np.linalg.eigvalsh(found).min()
    ensure(bool(least > -1e-12 * found.max()), f"inner products have the eigenvalue {least}")


def wire(space: Space) -> None:
    """A delta that was encoded and decoded combines to the same bits."""
    deltas, c = Federation(space).deltas(), [0.25] * COUNT
    crossed = [wire_format.open_tree(bytearray(wire_format.encode(d))) for d in deltas]
    same = wire_format.encode(space.combine(crossed, c)) == wire_format.encode(space.combine(deltas, c))
    ensure(same, "deltas that were encoded and decoded combine to other bits")


def _judged(federation: Federation, job: Job, payload: bytes | memoryview) -> Update | Rejected:
    """The gate's decision on a payload as the update of a job."""
    answer = Answer(job.id, job.client, job.version, 10.0, {"loss": 1.0}, payload, "", "")
    roster = Clients.from_columns(COUNT, {"sec_per_step": 1.0}).with_examples(np.full(COUNT, 10))
    expected = federation.space.expects(federation.state, job)
    return Gate().check(answer, job.client, {job.id: job}, expected, roster)


def hostile(space: Space) -> None:
    """Payloads that do not match `expects` are rejected, and those that do give a finite model."""
    federation = Federation(space)
    _, job, delta = federation.sent(0)
    honest = _judged(federation, job, wire_format.encode(delta))
    ensure(isinstance(honest, Update), f"the gate rejects an honest answer: {honest}")
    for what, payload in misfitting(delta):
        ensure(isinstance(_judged(federation, job, payload), Rejected), f"{what}: the gate lets it in")
    others = federation.deltas()[1:]
    for what, made in fitting(space.expects(federation.state, job)):
        update = _judged(federation, job, wire_format.encode(made))
        if isinstance(update, Rejected):
            continue
        try:
            taken = space.decode_delta(federation.state, job, update.delta)
            combined = space.combine([taken, *others], [1 / COUNT] * COUNT)
            found = federation.dense(space.merge(federation.state, combined))
        except Exception as error:
            raise AssertionError(f"{what}, which fits `expects`: {type(error).__name__}: {error}") from error
        bad = int((~np.isfinite(found)).sum())
        ensure(bad == 0, f"{what}, which fits `expects`, gives a model with {bad} numbers that are not finite")


CHECKS: dict[str, Check] = {
    "begin": begin,
    "merge": merge,
    "linear": linear,
    "gram": gram,
    "wire": wire,
    "hostile": hostile,
}
