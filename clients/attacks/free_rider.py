"""Free riding: an update without training.

kind="zero" sends a zero update; "delta" sends the global model's change since the client's last job, which looks like
an honest update; both may have Gaussian noise added.
Lin, Du, Liu, "Free-riders in Federated Learning: Attacks and Defenses", arXiv:1911.12560, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from clients.attacks.base import AbstractAttack
from fedhet.model.flat_model import Model
from fedhet.protocols import Shard, Work
from fedhet.types import Job, Memory

KINDS = ("zero", "delta")


@dataclass(frozen=True, kw_only=True)
class FreeRider(AbstractAttack):
    """Free rider: sends an update without training.

    kind: "zero" or "delta". noise: standard deviation of Gaussian noise on every coordinate. It reports the loss of one
    batch on the received model, and the requested number of steps.
    """

    kind: str = "zero"
    noise: float = 0.0

    def check(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not known; use one of {', '.join(KINDS)}")
        if not 0.0 <= self.noise < float("inf"):
            raise ValueError(f"noise={self.noise} must be 0 or more")

    def run(self, work: Work, model: Model, data: Shard, job: Job, memory: Memory, own: Memory) -> Mapping[str, float]:
        x, y = next(data.batches(work.batch))
        with torch.no_grad():
            loss = float(model.loss_of(model.predict(x), y))
            given = model.params.clone()
            if self.kind == "delta":
                model.params.add_(given - own.get("given", given))
                own["given"] = given
            if self.noise:
                drawn = data.rng("attack.noise").standard_normal(len(given))
                model.params.add_(torch.from_numpy(drawn).to(given.dtype), alpha=self.noise)
        steps = float(job.budget.steps)
        return {"loss": loss, "steps": steps, "fednova_norm": steps}
