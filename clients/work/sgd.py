"""Local SGD: w <- w - lr * grad F_i(w), on mini-batches, for as many steps as the job's budget.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629,
Algorithm 1, ClientUpdate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from clients.work.loop import AbstractLocal, plain_metrics, portions
from fedhet.model.flat_model import Model
from fedhet.native import BatchedStepper
from fedhet.protocols import OffersIndexedBatches, Shard, implements
from fedhet.types import Job, Memory


@dataclass(frozen=True)
class Sgd(AbstractLocal):
    """SGD with optional momentum, weight decay and gradient clipping; momentum starts from zero in every job."""

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        return self.steps(model, data, job)

    @property
    def can_batch(self) -> bool:
        """Whether the steps are plain SGD, so that jobs can run in one batched call."""
        return not (self.momentum or self.weight_decay or self.clip_norm is not None)

    def run_batch(
        self, rows: BatchedStepper, data: Sequence[Shard], jobs: Sequence[Job]
    ) -> Sequence[Mapping[str, float]] | None:
        """Run jobs of equal length in one batched call."""
        count, rate = jobs[0].budget.steps, self.rate(jobs[0])
        if count < 1:
            return None  # `run` raises the error
        if all(implements(type(shard), OffersIndexedBatches) for shard in data):
            shards = cast(Sequence[OffersIndexedBatches], data)
            losses = rows.pick([shard.pick(self.batch, count) for shard in shards], rate)
            if losses is not None:
                return [plain_metrics(own) for own in losses.tolist()]
        every: list[list[float]] = [[] for _ in jobs]
        for part in zip(*(portions(shard.batches(self.batch), count) for shard in data), strict=True):
            taken = len(every[0]) + len(part[0])
            losses = rows.descend_all(part, rate, last=taken == count)
            if losses is None:
                return None
            for all_, own in zip(every, losses.tolist(), strict=True):
                all_ += own
        return [plain_metrics(own) for own in every]
