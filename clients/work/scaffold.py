"""SCAFFOLD: every local step is corrected by the difference of the server's and the client's control variates.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv:1910.06378, Algorithm 1:

    y <- y - lr * (g_i(y) - c_i + c),  K times
    option II  c_i+ = c_i - c + (x - y) / (K lr)      option I  c_i+ = g_i(x)

The space sends c and combines the steps c_i+ - c_i; c_i is stored in the client's memory, initially zero. If an answer
is lost or dropped, c differs from the mean of the c_i by that step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clients.work.loop import AbstractLocal
from fedhet.model.flat_model import Model
from fedhet.protocols import Shard
from fedhet.types import Job, Memory

CHUNK = 1024
"""Samples of a full gradient that are computed at a time."""


@dataclass(frozen=True)
class Scaffold(AbstractLocal):
    """SCAFFOLD's local work: SGD with the correction c - c_i on every gradient.

    option: 2 computes c_i+ from the displacement, 1 from a full gradient at x. Weight decay is part of g_i. Momentum
    and clipping are refused with ValueError: (x - y) / (K lr) is then no mean of gradients.
    """

    option: int = 2

    needs: ClassVar[frozenset[str]] = frozenset({"control"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.option not in (1, 2):
            raise ValueError(f"option={self.option}: SCAFFOLD has options 1 and 2")
        if self.momentum:
            raise ValueError(f"momentum={self.momentum}: control variates assume plain SGD steps; set it to 0")
        if self.clip_norm is not None:
            raise ValueError(f"clip_norm={self.clip_norm}: control variates assume plain SGD steps; set it to null")

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        own = memory.get("control", torch.zeros_like(model.params))
        correction = model.extras["control"] - own  # c - c_i
        start = model.params.clone()
        fresh = self._full_gradient(model, data) if self.option == 1 else None

        def correct(grad: Tensor, params: Tensor) -> None:
            grad.add_(correction)

        metrics = self.steps(model, data, job, correct)
        if fresh is None:
            fresh = (start - model.params).div_(job.budget.steps * self.rate(job)).sub_(correction)
        model.extras["control_step"] = fresh - own
        memory["control"] = fresh
        return metrics

    def _full_gradient(self, model: Model, data: Shard) -> Tensor:
        """The gradient of the mean loss over all samples; buffers are restored afterwards."""
        buffers = model.flat[model.params.numel() :]
        kept, back = buffers.clone(), model.aside()
        model.module.train()
        x, y = data.all_samples()
        mean = model.params * self.weight_decay
        # batch statistics of one sample do not exist: a last part of one joins the part before
        ends = [*range(CHUNK, len(x) - (1 if model.batch_statistics else 0), CHUNK), len(x)]
        for start, end in zip([0, *ends], ends, strict=False):
            part = slice(start, end)
            model.gradient(x[part], y[part])
            mean.add_(model.grad, alpha=len(x[part]) / len(x))
        model.settle()
        buffers.copy_(kept)
        back()
        return mean
