"""Local SGD: w <- w - lr * grad F_i(w), on mini-batches, for as many steps as the job's budget.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629,
Algorithm 1, ClientUpdate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from clients.work.loop import AbstractLocal
from fedhet.batched import Batched
from fedhet.model import Model
from fedhet.protocols import Shard
from fedhet.types import Job, Memory


@dataclass(frozen=True)
class Sgd(AbstractLocal):
    """SGD with optional momentum, weight decay and gradient clipping; momentum starts from zero in every job."""

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        return self.steps(model, data, job)

    def together(
        self, rows: Batched, data: Sequence[Shard], jobs: Sequence[Job]
    ) -> Sequence[Mapping[str, float]] | None:
        """Jobs of equal length, side by side, if nothing is added to a gradient and all steps are of one size."""
        counts, rates = {job.budget.steps for job in jobs}, {self.rate(job) for job in jobs}
        if self.momentum or self.weight_decay or self.clip_norm is not None or len(counts) > 1 or len(rates) > 1:
            return None
        count, rate = counts.pop(), rates.pop()
        batches = [shard.batches(self.batch) for shard in data]
        total = torch.zeros(len(jobs), dtype=rows.flat.dtype)
        for _ in range(count):
            x, y = (torch.stack(part) for part in zip(*map(next, batches), strict=True))
            if x.dtype != rows.flat.dtype or y.dim() != 2 or not rows.agrees(x.shape[1]):
                return None
            total += rows.descend(x, y, rate)
        # without momentum every gradient has weight 1 in the displacement
        return [{"loss": loss / count, "steps": float(count), "a_norm": float(count)} for loss in total.tolist()]
