"""FedDyn: a linear and a quadratic term in each client's objective make local and global optima agree.

Acar et al., "Federated Learning Based on Dynamic Regularization", arXiv:2111.04263, Algorithm 1:

    client   y ~ argmin F_i(y) - <g_i, y> + (alpha/2) ||y - x||^2 ;   g_i <- g_i - alpha (y - x)
    server   h <- h - (alpha/n) sum_{i in S} (y_i - x) ;              x <- mean_S y_i - h / alpha

`FedDyn` is the clients' work, `FedDynServer` the server's transform on the optimizer axis. The mean must be uniform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clients.work.loop import AbstractLocal
from fedhet.bases import AbstractTransform
from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.protocols import Shard, View
from fedhet.types import Job, Memory, Tree


@dataclass(frozen=True)
class FedDyn(AbstractLocal):
    """FedDyn's local work: SGD on F_i(y) - <g_i, y> + (alpha/2) ||y - x||^2, with g_i updated after each job.

    alpha: regularisation, above 0 (ValueError); small values need `clip_norm` early in training. The trained parameters
    must be the same in every job.
    """

    alpha: float = 0.05

    needs: ClassVar[frozenset[str]] = frozenset({"coordinates"})

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.alpha)

    @property
    def pull(self) -> float:
        return self.alpha

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        own = memory.get("linear", torch.zeros_like(model.params))
        start = model.params.clone()
        constant = own + self.alpha * start

        def bend(grad: Tensor, params: Tensor) -> None:
            grad.add_(params, alpha=self.alpha).sub_(constant)

        metrics = self.steps(model, data, job, bend)
        memory["linear"] = own - self.alpha * (model.params - start)
        return metrics


@dataclass(frozen=True)
class FedDynServer(AbstractTransform):
    """FedDyn's server step: x <- mean_S y_i - h / alpha, with h, the mean of all g_i, in memory.

    alpha: the same as the clients'. averaged: last parts of the names of leaves without a gradient (statistics of
    normalisation layers), which are averaged only: h would make them oscillate. Raises ValueError for alpha not above
    0.
    """

    alpha: float = 0.05
    averaged: tuple[str, ...] = ("running_mean", "running_var")

    needs: ClassVar[frozenset[str]] = frozenset({"coordinates"})

    def __post_init__(self) -> None:
        _check(self.alpha)
        object.__setattr__(self, "averaged", tuple(self.averaged))

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        share = len(view.cohort) / len(view.roster)
        step: dict[str, Tensor] = {}
        for name, leaf in delta.items():
            if name.rpartition(".")[2] in self.averaged:
                step[name] = leaf
                continue
            wide = leaf.to(tree.accumulator(leaf.dtype))
            h = memory.get(name, torch.zeros_like(wide)) - self.alpha * share * wide
            memory[name] = h
            step[name] = (wide - h / self.alpha).to(leaf.dtype)
        return tree.flatten(step)


def _check(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be positive")
