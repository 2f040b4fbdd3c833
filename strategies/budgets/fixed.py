"""The same budget for all clients: a number of steps, or of epochs over the client's own samples.

steps = epochs * ceil(n_i / batch), as in McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", arXiv:1602.05629, Algorithm 1 (a partial last batch is a step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedhet.protocols import View
from fedhet.types import Budget, ClientId


@dataclass(frozen=True)
class Fixed:
    """The same number of steps, or of epochs with the `batch` size of the work, for every client.

    One epoch if neither `steps` nor `epochs` is given. rank: LoRA rank; 0: not used. width: share of the model that is
    trained, in (0, 1].

    Raises ValueError if both are given, if epochs are given without a batch size, or if a value is out of range.
    """

    steps: int | None = None
    epochs: int | None = None
    batch: int | None = None
    rank: int = 0
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps}, epochs={self.epochs}: give one of them, the other is null")
        if self.steps is None and self.batch is None:
            asked = "one epoch, without steps," if self.epochs is None else f"epochs={self.epochs}"
            raise ValueError(f"{asked} needs batch, the samples per step, such as ${{work.batch}}")
        for name in ("steps", "epochs", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.rank < 0:
            raise ValueError(f"rank={self.rank} must not be negative; 0 means that no rank is used")
        if not 0.0 < self.width <= 1.0:
            raise ValueError(f"width={self.width} is not in (0, 1]; 1.0 is the full model")

    def __call__(self, client: ClientId, view: View) -> Budget:
        steps = self.steps
        if steps is None:
            assert self.batch is not None
            steps = (self.epochs or 1) * max(1, math.ceil(view.roster.examples(client) / self.batch))
        return Budget(steps, self.rank, self.width)
