"""Quadratic clients with a known optimum, for tests of plug-ins: exact gradients, no data set.

Client i minimises f_i(x) = a_i/2 * ||x - b_i||^2 in float64, so the optimum of sum_i p_i f_i is
sum p_i a_i b_i / sum p_i a_i, and every local step has a closed form. `Experiment` runs such a world on the full
engine; `Rounds` runs a work, a space and a rule in synchronous rounds without an engine, and `FakeView` is the view for
a rule, a transform or a budget policy without a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedhet.model.flat_model import Model
from fedhet.numerics.rng import stream
from fedhet.population.roster import Clients, IdleClients
from fedhet.protocols import Idle, Normed, Observation, Rule, Shard, Space, Transform, Work
from fedhet.types import Budget, ClientId, Job, JobId, Memory, Tree, Update, Version
from fedhet.world import Scores


class Point(nn.Module):
    """One parameter vector; the output for any input is the vector itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.x


def quadratic_loss(x: Tensor, rows: Tensor) -> Tensor:
    """Mean over rows (a, b_1, ..., b_dim) of a/2 ||x - b||^2."""
    return (0.5 * rows[:, 0] * ((x - rows[:, 1:]) ** 2).sum(1)).mean()


def quadratic_model(dim: int = 1) -> Model:
    """A Model over one point, started at zero."""
    return Model(Point(dim), quadratic_loss)


@dataclass(frozen=True)
class QuadraticShard:
    """A client's `samples` equal rows: every mini-batch has the exact gradient."""

    row: Tensor
    samples: int
    key: tuple[int, int, int]

    def __len__(self) -> int:
        return self.samples

    def all_samples(self) -> tuple[Tensor, Tensor]:
        return self.row[None], self.row[None]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.all_samples()

    def rng(self, purpose: str) -> np.random.Generator:
        return stream(self.key[0], purpose, *self.key[1:])


class QuadraticWorld:
    """`curvature` a (clients,), `optima` b (clients,) or (clients, dim), `samples` per client. "accuracy" is
    1 / (1 + distance to the optimum of the weighted sum)."""

    def __init__(
        self, curvature: Sequence[float], optima: Any, samples: Sequence[int] | None = None, seed: int = 0
    ) -> None:
        self._a = np.asarray(curvature, dtype=np.float64)
        self._b = np.asarray(optima, dtype=np.float64).reshape(len(self._a), -1)
        self.clients, self._seed = len(self._a), seed
        self._samples = np.asarray(samples if samples is not None else [10] * self.clients, dtype=np.int64)
        p = self._samples / self._samples.sum()
        self.optimum = (p * self._a) @ self._b / (p @ self._a)

    def examples(self) -> np.ndarray:
        return self._samples

    def model(self) -> Model:
        return quadratic_model(self._b.shape[1])

    def shard(self, client: ClientId, turn: int) -> QuadraticShard:
        row = torch.tensor([self._a[client], *self._b[client]], dtype=torch.float64)
        return QuadraticShard(row, int(self._samples[client]), (self._seed, client, turn))

    def evaluate(self, model: Model) -> Scores:
        gap = float(np.linalg.norm(model.params.numpy() - self.optimum))
        return Scores(1 / (1 + gap), gap, np.full(self.clients, 1 / (1 + gap)))

    def flops(self) -> float:
        return 1.0

    def describe(self) -> Mapping[str, Any]:
        return {"data": "quadratic"}


def equal_clients(world: QuadraticWorld, **profile: Any) -> Clients:
    """A fleet without jitter or network for a world; `profile` overrides fields of all clients."""
    given = {"sec_per_step": 1.0, **profile}
    return Clients.from_columns(world.clients, given).with_examples(world.examples())


@dataclass
class Watched:
    """The server's observations of a client."""

    finished: int = 0
    failed: int = 0
    seconds_per_step: float | None = None


@dataclass
class FakeView:
    """A `View` whose values are fields. `roster` is real, `bases` and `watched` are looked up by version and client,
    and `rng` counts its streams as the server does."""

    roster: Clients
    space: Space
    state: Tree = field(default_factory=dict)
    version: Version = 0
    now: float = 0.0
    cohort: Sequence[Job] = ()
    inflight: dict[JobId, Job] = field(default_factory=dict)
    buffer: dict[JobId, Job] = field(default_factory=dict)
    occupied: set[ClientId] = field(default_factory=set)
    bases: dict[Version, Tree] = field(default_factory=dict)
    watched: dict[ClientId, Watched] = field(default_factory=dict)
    seed: int = 0
    draws: int = 0
    notes: list[tuple[str, dict[str, float | int | str]]] = field(default_factory=list)
    fednova_norm: Callable[[Job], float] = lambda job: float(job.budget.steps)

    @property
    def busy(self) -> int:
        return len(self.occupied)

    @property
    def idle(self) -> Idle:
        return IdleClients(self.roster, self.occupied, lambda: self.now, ())

    def base(self, version: Version) -> Tree:
        return self.bases[version]

    def observed(self, client: ClientId) -> Observation:
        return self.watched.get(client, Watched())

    def next_online(self) -> float | None:
        return self.roster.next_online(self.now)

    def rng(self, purpose: str) -> np.random.Generator:
        self.draws += 1
        return stream(self.seed, purpose, self.draws)

    def note(self, kind: str, data: Mapping[str, float | int | str]) -> None:
        self.notes.append((kind, dict(data)))


class TrainingWorld(Protocol):
    """The interface of a world for `Rounds`."""

    @property
    def clients(self) -> int: ...
    def examples(self) -> np.ndarray: ...
    def model(self) -> Model: ...
    def shard(self, client: ClientId, turn: int) -> Shard: ...


class Rounds:
    """Synchronous rounds without an engine: offer, install, run, extract, combine, finish, merge.

    `steps` is one number for all clients or one per client. One model serves all clients, as on a worker. `view.state`
    is the model now, `memories` each client's memory of the work, `layer_memory` those of the server's `layers`, whose
    `finish` runs in the order given; their other hooks are not part of this loop.
    """

    def __init__(
        self,
        work: Work,
        space: Space,
        rule: Rule,
        world: TrainingWorld,
        steps: int | Sequence[int] = 1,
        layers: Sequence[Transform] = (),
    ) -> None:
        self.work, self.space, self.rule, self.world, self.layers = work, space, rule, world, tuple(layers)
        self.steps = [steps] * world.clients if isinstance(steps, int) else list(steps)
        if len(self.steps) != world.clients:
            raise ValueError(f"{len(self.steps)} numbers of steps for {world.clients} clients")
        self.model = world.model()
        roster = Clients.from_columns(world.clients, {"sec_per_step": 1.0}).with_examples(world.examples())
        self.view = FakeView(roster, space, space.begin(self.model))
        if isinstance(work, Normed):
            self.view.fednova_norm = work.fednova_norm
        self.memories: list[Memory] = [{} for _ in range(world.clients)]
        self.layer_memory: list[Memory] = [{} for _ in self.layers]
        self.updates: list[Update] = []
        """Those of the last round."""
        self._turns = [0] * world.clients

    def run(self, rounds: int = 1, cohort: Sequence[ClientId] | None = None) -> Tree:
        """Run `rounds` rounds with these clients, or with all; returns the state after the last."""
        for _ in range(rounds):
            self._round(sorted(range(self.world.clients) if cohort is None else cohort))
        return self.view.state

    def _round(self, cohort: Sequence[ClientId]) -> None:
        view = self.view
        self.updates = [self._answer(client) for client in cohort]
        view.cohort = [u.job for u in self.updates]
        delta = self.rule(self.updates, self.space, view)
        for layer, memory in zip(self.layers, self.layer_memory, strict=True):
            delta = layer.finish(delta, view, memory)
        view.state = self.space.merge(view.state, delta)
        view.version, view.cohort = view.version + 1, ()

    def _answer(self, client: ClientId) -> Update:
        turn = self._turns[client]
        self._turns[client] += 1
        number = self.view.version * self.world.clients + client
        job = Job(number, client, self.view.version, turn, Budget(self.steps[client]), self.view.now)
        payload, shard = self.space.offer(self.view.state, job), self.world.shard(client, turn)
        self.model.reset()
        self.model.extras.clear()
        self.space.install(self.model, payload, job)
        metrics = self.work.run(self.model, shard, job, self.memories[client])
        delta = self.space.decode_delta(self.view.state, job, self.space.extract(self.model, payload))
        return Update(job, delta, float(len(shard)), metrics=metrics)
