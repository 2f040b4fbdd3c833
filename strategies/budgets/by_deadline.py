"""As many local steps as fit into a fixed time, given the client's observed speed.

steps = floor(seconds / s_i) within bounds, with s_i the client's latest observed seconds per step, transfer included.
The idea of fitting local work to the time a round has is Zhang et al., "TimelyFL: Heterogeneity-aware Asynchronous
Federated Learning with Adaptive Partial Training", arXiv:2304.06947; its partial training of layers is not part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedhet.protocols import View
from fedhet.types import Budget, ClientId


@dataclass(frozen=True)
class ByDeadline:
    """As many steps as fit into `seconds` at the client's observed speed.

    min_steps, max_steps: bounds. first_steps: steps before the first observation. rank, width: the same for all
    clients. Raises ValueError for values out of range.
    """

    seconds: float = 1.0
    first_steps: int = 1
    min_steps: int = 1
    max_steps: int = 1000
    rank: int = 0
    width: float = 1.0

    def __post_init__(self) -> None:
        if not (self.seconds > 0.0 and math.isfinite(self.seconds)):
            raise ValueError(f"seconds={self.seconds} must be a positive, finite time, such as 10.0")
        if self.min_steps < 1:
            raise ValueError(f"min_steps={self.min_steps} must be at least 1")
        if self.max_steps < self.min_steps:
            raise ValueError(f"max_steps={self.max_steps} is below min_steps={self.min_steps}; raise it")
        if not self.min_steps <= self.first_steps <= self.max_steps:
            raise ValueError(f"first_steps={self.first_steps} is not in [{self.min_steps}, {self.max_steps}]")
        if self.rank < 0:
            raise ValueError(f"rank={self.rank} must not be negative; 0 means that no rank is used")
        if not 0.0 < self.width <= 1.0:
            raise ValueError(f"width={self.width} is not in (0, 1]; 1.0 is the full model")

    def __call__(self, client: ClientId, view: View) -> Budget:
        s = view.observed(client).seconds_per_step
        steps = self.first_steps
        if s is not None:
            fit = self.max_steps if s * self.max_steps <= self.seconds else math.floor(self.seconds / s + 1e-9)
            steps = min(self.max_steps, max(self.min_steps, fit))
        return Budget(steps, self.rank, self.width)
