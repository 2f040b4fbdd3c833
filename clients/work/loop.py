"""The loop of local SGD steps that all works share: mini-batch gradients on flat buffers, steps in place.

A work differs from plain SGD in what it adds to a gradient, which is one function. Losses are summed as tensors and
read once at the end. The loop also computes the FedNova norm, the sum of the weights that the gradients have in the
displacement (Wang et al., "Tackling the Objective Inconsistency Problem in
Heterogeneous Federated Optimization", arXiv:2007.07481, section 4),

    w_0 - w_K = lr * sum_k a_k g_k,    fednova_norm = sum_k a_k,

which is the displacement of the same steps on the constant gradient 1: K for plain SGD, v <- m v + 1, a <- a + v with
momentum m, and a <- (1 - lr mu) a + 1 with a proximal term mu * (w - w_0).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.model.flat_model import Model
from fedhet.numerics.tree import accumulator
from fedhet.protocols import Shard
from fedhet.types import Batch, Job, Memory

Adjust = Callable[[Tensor, Tensor], None]
"""adjust(grad, params): change the gradient in place before the step."""


PORTION = 1 << 20
"""Approximate bytes of inputs that are passed to a model in one call."""


def portions(batches: Iterator[Batch], count: int) -> Iterator[list[Batch]]:
    """The first `count` batches, several at a time: a model may take their steps in one call."""
    part: list[Batch] = []
    held = 0
    for x, y in islice(batches, count):
        part.append((x, y))
        held += x.nbytes
        if held >= PORTION:
            yield part
            part, held = [], 0
    if part:
        yield part


@lru_cache(maxsize=4096)
def path(steps: int, momentum: float = 0.0, nesterov: bool = False, pull: float = 0.0) -> float:
    """The FedNova norm of `steps` local steps; `pull` is lr * mu of a proximal term mu * (w - w_0)."""
    if not momentum and not pull:
        return float(steps)
    lever = gone = 0.0
    for _ in range(steps):
        unit = 1.0 - pull * gone
        lever = momentum * lever + unit
        gone += unit + momentum * lever if nesterov else lever
    return gone


def plain_metrics(losses: Sequence[float]) -> dict[str, float]:
    """Metrics of plain steps with these losses: every gradient has weight 1 in the displacement."""
    count = float(len(losses))
    return {"loss": sum(losses) / count, "steps": count, "fednova_norm": count}


@dataclass(frozen=True)
class AbstractLocal(ABC):
    """Base of local SGD works: hyper-parameters and the loop of steps.

    lr: step size of version 0; a job that starts from `version` uses lr * lr_decay**version.
    batch: samples per step.
    momentum: heavy ball, from zero in every job; `nesterov`: Nesterov's form.
    weight_decay: L2, added to the gradient.
    clip_norm: largest Euclidean norm of a gradient after all additions; None: no clipping.

    Raises ValueError for values out of range.
    """

    lr: float = 0.1
    batch: int = 32
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    lr_decay: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({"fednova_norm"})

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} must be positive")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch} must be at least 1 sample")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be in [0, 1)")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True looks ahead by the momentum: set momentum above 0, or nesterov=False")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be positive, or null for no clipping")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"lr_decay={self.lr_decay} must be in (0, 1]; 1 keeps the step size")

    @abstractmethod
    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        """Train the model in place; see `fedhet.protocols.Work`."""

    def rate(self, job: Job) -> float:
        """The step size of a job."""
        return self.lr * self.lr_decay**job.version

    @property
    def pull(self) -> float:
        """mu of the proximal term mu * (w - w_0) that this work adds to a gradient; 0 for none."""
        return 0.0

    def fednova_norm(self, job: Job) -> float:
        """The FedNova norm of a job; it depends on the budget and these hyper-parameters only."""
        return path(job.budget.steps, self.momentum, self.nesterov, self.rate(job) * self.pull)

    def steps(self, model: Model, data: Shard, job: Job, adjust: Adjust | None = None) -> dict[str, float]:
        """Run the job's steps. Metrics: "loss", the mean over the steps; "steps"; "fednova_norm" as above.

        Raises ValueError for a job without steps.
        """
        count, rate = job.budget.steps, self.rate(job)
        if count < 1:
            raise ValueError(f"job {job.id} asks for {count} steps; local training needs at least 1")
        model.module.train()
        params, grad = model.params, model.grad
        batches = data.batches(self.batch)
        velocity = torch.zeros_like(params) if self.momentum else None
        if velocity is None and adjust is None and not self.weight_decay and self.clip_norm is None:
            losses: list[float] = []
            for part in portions(batches, count):
                losses += model.descend_all(part, rate).tolist()
            return plain_metrics(losses)
        total = torch.zeros((), dtype=accumulator(params.dtype))
        for _ in range(count):
            total += model.gradient(*next(batches))
            if self.weight_decay:
                grad.add_(params, alpha=self.weight_decay)
            if adjust is not None:
                adjust(grad, params)
            if self.clip_norm is not None:
                self._clip(grad)
            if velocity is None:
                params.add_(grad, alpha=-rate)
            else:
                velocity.mul_(self.momentum).add_(grad)
                step = grad.add_(velocity, alpha=self.momentum) if self.nesterov else velocity
                params.add_(step, alpha=-rate)
        return {"loss": float(total) / count, "steps": float(count), "fednova_norm": self.fednova_norm(job)}

    def _clip(self, grad: Tensor) -> None:
        norm = float(grad.norm())
        if self.clip_norm is not None and norm > self.clip_norm:
            grad.mul_(self.clip_norm / norm)
