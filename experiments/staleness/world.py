"""Slow clients with unique data: single-class clients, of which those of one class are `stale` rounds late.

100 clients of equal numbers of images, sorted by class, so that almost every client has one class; ten clients per
round, in ten fixed blocks. From round `delay` on the clients whose first image is of class `affected` send updates from
the model of `stale` rounds before. Rounds use fedhet's work, rule and transforms, without a clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from clients.data.parquet import Images
from clients.data.shard import ClientShard
from clients.models.build import build
from clients.models.vision import lenet
from clients.work.sgd import Sgd
from fedhet.bases import AbstractTransform
from fedhet.numerics.rng import stream
from fedhet.numerics.tree import FlatTree, add, weighted_sum
from fedhet.population.roster import Clients
from fedhet.testing.quadratic import FakeView
from fedhet.types import Budget, Job, Memory, Tree, Update
from strategies.privacy.noise import Noise
from strategies.rules.mean import Mean
from strategies.spaces.full import Full
from strategies.staleness.tiers import tier_weights

CLIENTS, PER_ROUND, STEPS, CLASSES, SIDE = 100, 10, 5, 10, 16
MEAN, STD = 0.1307, 0.3081
"""Of the pixels of this data set: images are normalised by them."""


class World:
    """Data, shards and the model; `affected` is the class that only slow clients hold."""

    def __init__(self, data: Path, seed: int, lr: float, affected: int = 5) -> None:
        raw = Images(path=str(data)).load()
        self.seed, self.affected = seed, affected
        self.x, self.y = _shrunk(raw.x_train), raw.y_train
        self.x_test, self.y_test = _shrunk(raw.x_test), raw.y_test
        per_client = len(self.y) // CLIENTS
        order = stream(seed, "staleness order").permutation(len(self.y))
        order = order[np.argsort(self.y.numpy()[order], kind="stable")][: per_client * CLIENTS]
        self.shards = order.reshape(CLIENTS, per_client)[stream(seed, "staleness shards").permutation(CLIENTS)]
        self.slow = [i for i, shard in enumerate(self.shards) if int(self.y[shard[0]]) == affected]
        self.model = build(lenet, tuple(self.x.shape[1:]), CLASSES, seed)
        self.initial = self.model.flat.clone()
        self.work = Sgd(lr=lr, batch=per_client)
        columns = Clients.from_columns(CLIENTS, {"sec_per_step": 1.0})
        self.roster = columns.with_examples(np.full(CLIENTS, per_client, np.int64))

    def train(self, client: int, start: FlatTree, version: int, turn: int) -> Update:
        """What a client makes of a model; its job started from `version`."""
        job = Job(version * CLIENTS + client, client, version, turn, Budget(STEPS), float(version))
        shard = ClientShard(self.x, self.y, self.shards[client], self.seed, client, turn)
        self.model.flat.copy_(start.flat)
        metrics = self.work.run(self.model, shard, job, {})
        delta = FlatTree(start.schema, self.model.flat - start.flat)
        return Update(job, delta, float(len(shard)), metrics=metrics)

    def scores(self, state: FlatTree) -> tuple[float, float]:
        """Accuracy over the test set, and over its images of the affected class."""
        self.model.flat.copy_(state.flat)
        right = self.model.predict(self.x_test).argmax(1) == self.y_test
        return float(right.double().mean()), float(right[self.y_test == self.affected].double().mean())


@dataclass
class Method:
    """How late updates are taken in. `layer` handles them one by one; `predict` sends slow clients a model extrapolated
    by so many rounds at most; `tiers` keeps a model for the fast and one for the slow clients, who train together every
    `stale` rounds; `noise` is what slow clients put on what they send."""

    layer: AbstractTransform = field(default_factory=AbstractTransform)
    fresh: bool = False
    predict: int = 0
    tiers: bool = False
    noise: Noise = field(default_factory=lambda: Noise(0.0))


@dataclass
class Rounds:
    """One run. `rows` grows by (round, accuracy, accuracy on the affected class) at every evaluation."""

    world: World
    method: Method
    stale: int
    delay: int = 40
    every: int = 2
    rows: list[tuple[int, float, float]] = field(default_factory=list)
    server_seconds: float = 0.0
    memory: Memory = field(default_factory=dict)
    models: list[FlatTree] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [0, 0])

    def __post_init__(self) -> None:
        self.world.model.flat.copy_(self.world.initial)
        start = Full().begin(self.world.model)
        assert isinstance(start, FlatTree)
        self.view = FakeView(self.world.roster, Full(), start, seed=self.world.seed)
        self.view.bases[0] = start

    def branch(self, method: Method, stale: int) -> Rounds:
        """Another run that goes on from here: until round `delay` all are the same."""
        twin = Rounds(self.world, method, stale, self.delay, self.every, list(self.rows))
        twin.view.state, twin.view.version = self.view.state, self.view.version
        twin.view.bases = dict(self.view.bases)
        return twin

    def run(self, rounds: int) -> None:
        """Up to so many rounds in all."""
        while self.view.version < rounds:
            self._round()
            if self.view.version % self.every == 0:
                assert isinstance(self.view.state, FlatTree)
                self.rows.append((self.view.version, *self.world.scores(self.view.state)))

    def _round(self) -> None:
        view, t = self.view, self.view.version
        block = range(t % PER_ROUND * PER_ROUND, (t % PER_ROUND + 1) * PER_ROUND)
        late = set(self.world.slow) if t >= self.delay and not self.method.fresh else set()
        updates = [self._answer(client, t - self.stale if client in late else t) for client in block]
        updates = [self.method.noise.send(u, {}) if u.job.client in late else u for u in updates]
        if self.method.tiers and late:
            self._mix([u for u in updates if u.job.client not in late])
        else:
            view.state = view.space.merge(view.state, self._step(updates))
        view.version += 1
        view.bases[view.version] = view.state
        view.bases.pop(view.version - self.stale - PER_ROUND - 1, None)

    def _answer(self, client: int, version: int) -> Update:
        start = self.view.base(version)
        if self.method.predict and version < self.view.version:
            before = self.view.base(max(0, version - PER_ROUND))
            ahead = min(self.stale, self.method.predict) / min(PER_ROUND, max(1, version))
            assert isinstance(start, FlatTree) and isinstance(before, FlatTree)
            start = FlatTree(start.schema, start.flat + ahead * (start.flat - before.flat))
        assert isinstance(start, FlatTree)
        return self.world.train(client, start, version, self.view.version // PER_ROUND)

    def _step(self, updates: Sequence[Update]) -> Tree:
        view = self.view
        view.cohort = [u.job for u in updates]
        began = time.process_time()
        came = [self.method.layer.arrive(u, view, self.memory) for u in updates]
        self.server_seconds += time.process_time() - began
        return Mean()(came, view.space, view)

    def _mix(self, fast: Sequence[Update]) -> None:
        """FedAT's mixture of two tiers: the tier that reports seldom weighs more."""
        view, t = self.view, self.view.version
        self.models = self.models or [view.state, view.state]  # type: ignore[list-item]  # flat in this space
        rounds = [(0, t, fast)]
        if (t - self.delay) % self.stale == 0:
            rounds.append((1, t - self.stale, [self._answer(c, t - self.stale) for c in self.world.slow]))
        for tier, base, updates in rounds:
            self.models[tier] = add(view.base(base), self._step(updates))  # type: ignore[call-overload]
            self.counts[tier] += 1
        view.state = weighted_sum(self.models, tier_weights(self.counts))


def _shrunk(images: Tensor) -> Tensor:
    """`SIDE` pixels a side, normalised: a fraction of the work that 28 are."""
    size = (SIDE, SIDE)
    return (nn.functional.interpolate(images, size, mode="bilinear", antialias=True) - MEAN) / STD
