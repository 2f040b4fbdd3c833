"""Local SGD: w <- w - lr * grad F_i(w), on mini-batches, for as many steps as the job's budget.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629,
Algorithm 1, ClientUpdate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clients.work.loop import AbstractLocal, portions
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
        total = [0.0] * len(jobs)
        for part in zip(*(portions(shard.batches(self.batch), count) for shard in data), strict=True):
            losses = rows.descend_all(part, rate)
            if losses is None:
                return None
            total = [sum(own, before) for before, own in zip(total, losses.tolist(), strict=True)]
        # without momentum every gradient has weight 1 in the displacement
        return [{"loss": loss / count, "steps": float(count), "a_norm": float(count)} for loss in total]
