"""When inversion no longer pays: its estimate and the late update itself are held against what came in the end.

    E1 = dist(estimate, truth),   E2 = dist(late update, truth)

truth is the client's next displacement, the estimate what its reconstructed data would have given from the model that
job started from, the late update the one before. If E1 > E2 in most of the last `checks` comparisons, at version t_s,
the share of the estimate falls linearly from 1 to 0 over W = window * t_s versions; then late updates are used
as they are, and the switch stays off. arXiv:2309.13536; shape and length of the fall are not published and ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedhet.types import Memory
from strategies.staleness.inversion_unique import distance as cosine


@dataclass(frozen=True)
class Switch:
    """checks: comparisons the majority is taken of; 0 never switches back. window: W as a share of t_s. margin: E1
    counts as larger if margin * E1 > E2. metric: "l1" or "cosine". Raises ValueError for values out of range.
    """

    checks: int = 5
    window: float = 0.1
    margin: float = 1.0
    metric: str = "l1"

    def __post_init__(self) -> None:
        if self.checks < 0:
            raise ValueError(f"checks={self.checks} must be at least 0; 0 never switches back")
        if not self.window >= 0.0:
            raise ValueError(f"window={self.window} must be at least 0; 0.1 is a tenth of the versions so far")
        if not self.margin > 0.0:
            raise ValueError(f"margin={self.margin} must be above 0; below 1 the estimate is given some credit")
        if self.metric not in ("l1", "cosine"):
            raise ValueError(f"metric={self.metric!r} is unknown; use 'l1' or 'cosine'")

    def share(self, version: int, memory: Memory) -> float:
        """gamma, the share of the estimate: 1 before the switch, falling to 0."""
        if "switched" not in memory:
            return 1.0
        since = int(memory["switched"])
        length = self.window * since
        return 0.0 if length <= 0.0 else min(1.0, max(0.0, 1.0 - (version - since) / length))

    def judge(self, estimate: Tensor, late: Tensor, truth: Tensor, version: int, memory: Memory) -> tuple[float, float]:
        """E1 and E2; may throw the switch, once. `version` is the model's now."""
        e1, e2 = self._distance(estimate, truth), self._distance(late, truth)
        if self.checks and "switched" not in memory:
            lost = memory.get("lost", torch.zeros(0, dtype=torch.bool))
            lost = torch.cat([lost, torch.tensor([self.margin * e1 > e2])])[-self.checks :]
            memory["lost"] = lost
            if len(lost) == self.checks and 2 * int(lost.sum()) > self.checks:
                memory["switched"] = torch.tensor(version)
        return e1, e2

    def _distance(self, a: Tensor, b: Tensor) -> float:
        return cosine(a, b) if self.metric == "cosine" else float((a - b).abs().sum(dtype=torch.float64))
