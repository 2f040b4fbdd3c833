"""A small federation of clients of unequal rank: the real server, gate and wire format, and devices with state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.work.sgd import Sgd
from fedhet.engine.answer import Answer
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Method
from fedhet.engine.server import Server
from fedhet.engine.stopping import Limits
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.numerics.tree import Schema
from fedhet.population.roster import Clients
from fedhet.types import Budget, Job, Tree, Update
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync

SAMPLES = 12


@dataclass(frozen=True)
class Ranks:
    """A rank for every client."""

    ranks: tuple[int, ...]
    steps: int

    def __call__(self, client: int, view: Any) -> Budget:
        return Budget(self.steps, self.ranks[client])


@dataclass(frozen=True)
class Samples:
    """A client's samples around a point of its own."""

    client: int

    def __len__(self) -> int:
        return SAMPLES + self.client

    def all_samples(self) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(self.client)
        x = rng.normal(size=(len(self), 6)) + rng.normal(size=6)
        return torch.from_numpy(x).float(), torch.from_numpy(rng.integers(0, 3, len(self)))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.all_samples()

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(self.client)


@dataclass(frozen=True)
class World:
    """Perceptrons 6-10-3, as many clients as asked for."""

    clients: int
    kind: torch.dtype = torch.float32

    def model(self) -> Model:
        torch.manual_seed(3)
        return Model(nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).to(self.kind))

    def shard(self, client: int, turn: int) -> Samples:
        return Samples(client)

    def examples(self) -> np.ndarray:
        return np.array([SAMPLES + c for c in range(self.clients)])


@dataclass
class Federation:
    """`run` it, then look: what was `sent` to whom, the server's `states` by version, `updates` as they were accepted,
    each client's `memories`, and why jobs `failed`."""

    space: Any
    ranks: Sequence[int]
    per_round: int | None = None
    steps: int = 3
    lr: float = 0.3
    seed: int = 0
    rule: Any = field(default_factory=Mean)
    fate: Callable[[Job], str] = lambda job: ""
    spoil: Callable[[Job, Tree], Tree] = lambda job, delta: delta
    sent: list[tuple[Job, Tree]] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0

    def __post_init__(self) -> None:
        world = World(len(self.ranks))
        policy = Ranks(tuple(self.ranks), self.steps)
        self.method = Method(Sync(per_round=self.per_round), self.space, self.rule, Sgd(lr=self.lr), policy)
        roster = Clients.from_columns(len(self.ranks), {"sec_per_step": 1.0}).with_examples(world.examples())
        self.world, self.device = world, Device(self.method, world.model(), world, self.seed)
        self.memories: list[dict[str, Any]] = [{} for _ in self.ranks]
        start = self.space.begin(world.model())
        self.server = Server(self.method, start, roster, Limits(versions=10**6), self.seed, lambda *_: None)
        self.states = [start]
        self.gate = Gate()

    def run(self, versions: int) -> Federation:
        server = self.server
        if server.version == 0:
            server.start()
        while server.version < versions:
            if not self._instant() and server.next_timer is not None:
                server.wake(server.next_timer)
        return self

    def _instant(self) -> bool:
        server, now = self.server, self.server.now
        sends = server.settle(now)
        for send in sends:
            job = send.job
            payload = wire_format.encode(send.payload)
            self.bytes_down += len(payload)
            self.sent.append((job, send.payload))
            try:
                update = self.device.answer(job, wire_format.open_tree(payload), self._memory(job.client))
            except ValueError as error:
                self._fail(job, f"client error: {error}")
                continue
            if reason := self.fate(job):
                self._fail(job, reason)
                continue
            body = wire_format.encode(self.spoil(job, update.delta))
            self.bytes_up += len(body)
            answer = Answer(job.id, job.client, job.version, update.weight, update.metrics, body, "", "")
            expects, rank = server.expects(job), server.rank_of(job)
            verdict = self.gate.check(answer, job.client, server.inflight, expects, server.roster, rank=rank)
            if isinstance(verdict, Rejected):
                self.failed.append((job, verdict.code))
                server.reject(job, verdict.code, verdict.detail, now + 1)
            else:
                self.updates.append(verdict)
                server.arrived(verdict, now + 1)
            if len(self.states) <= server.version:
                self.states.append(server.state)
        return bool(sends)

    def _memory(self, client: int) -> dict[str, Any]:
        """As the client's context keeps it."""
        stored = {
            k: dict(wire_format.open_tree(bytearray(wire_format.encode(v)))) for k, v in self.memories[client].items()
        }
        self.memories[client] = stored
        return stored

    def _fail(self, job: Job, reason: str) -> None:
        self.failed.append((job, reason))
        self.server.failed(job.id, reason, self.server.now + 1)
        if len(self.states) <= self.server.version:
            self.states.append(self.server.state)

    def dense(self, state: Tree) -> np.ndarray:
        """The whole model of a state."""
        model = self.world.model()
        self.space.restore(model, state)
        return model.flat.numpy().copy()

    def numbers(self, payload: Tree) -> int:
        """Numbers sent, without the stamp."""
        return Schema.of({n: leaf for n, leaf in payload.items() if not n.startswith("lora/")}).size


@pytest.fixture(scope="session")
def federation() -> type[Federation]:
    return Federation


@pytest.fixture(scope="session")
def small_world() -> type[World]:
    return World


@pytest.fixture(scope="session")
def distance() -> Callable[[Any, Any], float]:
    """Relative distance of two arrays."""
    return lambda a, b: float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))
