"""Base classes of attacks: which clients attack, and a wrapper around local work that changes their updates.

An attack is a frozen dataclass of hyper-parameters. Called with a work it returns a work, so it wraps any local
training. Honest clients run the inner work alone, on the same random streams as without an attack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedhet.model.flat_model import Model
from fedhet.numerics.rng import stream
from fedhet.protocols import Normed, Shard, Work
from fedhet.types import ClientId, Job, Memory

PREFIX = "attack."
"""Prefix of an attack's entries in a client's memory; the inner work does not see them."""


@dataclass(frozen=True, kw_only=True)
class AbstractAttack(ABC):
    """An attack by `fraction` of the `population` clients, drawn once from the seed, or by the given `clients`.

    Raises ValueError for a fraction outside [0, 1], and for neither a population nor a list of clients.
    """

    fraction: float = 0.2
    clients: Sequence[ClientId] | None = None
    population: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError(f"fraction={self.fraction} of the clients must be in [0, 1]")
        if self.clients is None and self.population is None:
            raise ValueError("population is not known: give the number of clients, or list the attacking clients")
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError for hyper-parameters of the attack that are out of range."""

    @cached_property
    def attackers(self) -> frozenset[ClientId]:
        """round(fraction * population) clients, the same in every process of a run."""
        if self.clients is not None:
            return frozenset(self.clients)
        assert self.population is not None
        order = stream(self.seed, "attackers").permutation(self.population)
        return frozenset(int(c) for c in order[: round(self.fraction * self.population)])

    def __contains__(self, client: object) -> bool:
        return client in self.attackers

    def __call__(self, work: Work) -> Attacked:
        return Attacked(work, self)

    @abstractmethod
    def run(self, work: Work, model: Model, data: Shard, job: Job, memory: Memory, own: Memory) -> Mapping[str, float]:
        """An attacker's job: `memory` is the inner work's, `own` the attack's. Metrics as the work reports them."""


@dataclass(frozen=True)
class Attacked:
    """A work in which attacking clients run the attack, and all others the inner work."""

    work: Work
    attack: AbstractAttack

    @property
    def needs(self) -> frozenset[str]:
        return self.work.needs

    @property
    def gives(self) -> frozenset[str]:
        return getattr(self.work, "gives", frozenset())

    @property
    def batch(self) -> int:
        return self.work.batch

    def fednova_norm(self, job: Job) -> float:
        """The inner work's FedNova norm, which is what a server can compute. Raises TypeError if it has none."""
        if not isinstance(self.work, Normed):
            raise TypeError(f"work {type(self.work).__name__} does not say what its steps add up to")
        return self.work.fednova_norm(job)

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        if job.client not in self.attack:
            return self.work.run(model, data, job, memory)
        inner = {k: v for k, v in memory.items() if not k.startswith(PREFIX)}
        own = {k.removeprefix(PREFIX): v for k, v in memory.items() if k.startswith(PREFIX)}
        metrics = self.attack.run(self.work, model, data, job, inner, own)
        memory.clear()
        memory.update(inner)
        memory.update({PREFIX + k: v for k, v in own.items()})
        return metrics


class AbstractForgery(AbstractAttack):
    """Base of attacks that train honestly and send a vector computed from the honest update."""

    @abstractmethod
    def forge(self, update: Tensor, data: Shard, own: Memory) -> Tensor:
        """The vector to send for the honest `update`, both shape (D,) over the model's parameters."""

    def run(self, work: Work, model: Model, data: Shard, job: Job, memory: Memory, own: Memory) -> Mapping[str, float]:
        start = model.params.clone()
        metrics = work.run(model, data, job, memory)
        with torch.no_grad():
            model.params.copy_(start + self.forge(model.params - start, data, own))
        return metrics


class AbstractPoisoning(AbstractAttack):
    """Base of attacks that train with the inner work on changed data; see `poison`."""

    @abstractmethod
    def change(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """The samples to train on in place of `x` and `y`, which are not modified."""


def poison(
    attack: AbstractPoisoning, work: Work, model: Model, data: Shard, job: Job, memory: Memory
) -> Mapping[str, float]:
    """Run the work on changed samples."""
    classes = model.predict(data.all_samples()[0][:1]).shape[-1]
    return work.run(model, Poisoned(data, attack, classes), job, memory)


@dataclass(frozen=True)
class Poisoned:
    """A shard whose samples are changed by an attack."""

    data: Shard
    attack: AbstractPoisoning
    classes: int

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.attack.change(x, y, self.classes) for x, y in self.data.batches(size))

    def all_samples(self) -> tuple[Tensor, Tensor]:
        return self.attack.change(*self.data.all_samples(), self.classes)

    def rng(self, purpose: str) -> np.random.Generator:
        """The inner shard's stream."""
        return self.data.rng(purpose)
