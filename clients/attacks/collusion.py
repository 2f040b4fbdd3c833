"""Base of collusion attacks: all attackers send one vector that depends on the honest updates.

`vector(honest, count, defence)` is the attack on the rows of a matrix. It has two uses. As a work, every attacker
estimates the honest updates from its own data: it trains on several disjoint parts of them, starting from the same
model, and computes one vector from the results. In simulation `strategies.rules.colluding` gives the attack the true
honest updates of a combination and the rule, which is the strongest possible attacker.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.attacks.base import AbstractAttack
from fedhet.model.flat_model import Model
from fedhet.protocols import Shard, Work
from fedhet.types import Job, Memory

Defence = Callable[[Tensor], Tensor]
"""The aggregate of a combination in which every attacker sends the given vector; both (D,)."""


@dataclass(frozen=True, kw_only=True)
class AbstractCollusion(AbstractAttack):
    """Base of collusion attacks.

    estimates: number of disjoint parts of an attacker's data that it trains on to estimate the honest updates.
    """

    estimates: int = 4

    @abstractmethod
    def vector(self, honest: Tensor, count: int, defence: Defence) -> Tensor:
        """The vector (D,) that each of `count` attackers sends when the others send the rows of `honest`, (h, D)."""

    def run(self, work: Work, model: Model, data: Shard, job: Job, memory: Memory, own: Memory) -> Mapping[str, float]:
        if self.estimates < 1:
            raise ValueError(f"estimates={self.estimates} must be at least 1 part of the data")
        whole, start = model.flat.clone(), model.params.clone()
        parts = min(self.estimates, len(data.all_samples()[0]))
        rows, after = [], dict(memory)
        for part in range(parts):
            model.flat.copy_(whole)
            after = dict(memory)
            metrics = work.run(model, Part(data, part, parts), job, after)
            rows.append(model.params - start)
        memory.clear()
        memory.update(after)
        guess = torch.stack(rows)

        def mean(candidate: Tensor) -> Tensor:  # the rule is not known to a client
            return (guess.sum(0) + candidate) / (len(guess) + 1)

        with torch.no_grad():
            model.params.copy_(start + self.vector(guess, 1, mean))
        return metrics


@dataclass(frozen=True)
class Part:
    """Every `of`-th sample of a shard, from `index`, with random streams of its own."""

    data: Shard
    index: int
    of: int

    def __len__(self) -> int:
        return len(range(self.index, len(self.data), self.of))

    def all_samples(self) -> tuple[Tensor, Tensor]:
        x, y = self.data.all_samples()
        return x[self.index :: self.of], y[self.index :: self.of]

    def rng(self, purpose: str) -> np.random.Generator:
        return self.data.rng(f"{purpose}, part {self.index}")

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        (x, y), rng = self.all_samples(), self.rng("batches")
        while True:
            order = torch.from_numpy(rng.permutation(len(x)))
            for at in range(0, len(x), size):
                part = order[at : at + size]
                yield x[part], y[part]


def strongest(score: Callable[[float], float], rounds: int = 20, step: float = 10.0) -> float:
    """A strength t >= 0 of large score: from 0, double the step while the score grows, then halve it.

    A line search as in González et al., arXiv:2505.24802; it finds the maximum of a score with one peak.
    """
    best, value, growing = 0.0, score(0.0), True
    for _ in range(rounds):
        for tried in [best + step] if growing else [best + step, max(0.0, best - step)]:
            if (found := score(tried)) > value:
                best, value = tried, found
                break
        else:
            growing = False
        step *= 2.0 if growing else 0.7
    return best


def damage(defence: Defence, mean: Tensor, direction: Tensor) -> Callable[[float], float]:
    """The distance of the aggregate from the honest mean when attackers send mean + t * direction."""
    return lambda t: float(torch.linalg.vector_norm(defence(mean + t * direction) - mean))
