"""The switch back from inversion: its estimate and the late update itself are compared with the client's next update.

    E1 = dist(estimate, truth),   E2 = dist(late update, truth)

truth is the client's next displacement, the estimate that of its reconstructed data from the model that job started
from, and the late update its previous displacement. If E1 > E2 in most of the last `checks` comparisons, at version
t_s, the weight of the estimate falls linearly from 1 to 0 over W = window * t_s versions; from then on late updates are
used unchanged. arXiv:2309.13536; shape and length of the decrease are not published, and chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedhet.types import Memory
from strategies.staleness.inversion_unique import distance as cosine


@dataclass(frozen=True)
class Switch:
    """The switch from estimates back to the late updates themselves.

    checks: number of comparisons for the majority; 0 never switches back. window: W as a share of t_s. margin: E1
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
            raise ValueError(f"margin={self.margin} must be above 0; below 1 it favours the estimate")
        if self.metric not in ("l1", "cosine"):
            raise ValueError(f"metric={self.metric!r} is unknown; use 'l1' or 'cosine'")

    def share(self, version: int, memory: Memory) -> float:
        """gamma, the weight of the estimate: 1 before the switch, then decreasing to 0."""
        if "switched" not in memory:
            return 1.0
        since = int(memory["switched"])
        length = self.window * since
        return 0.0 if length <= 0.0 else min(1.0, max(0.0, 1.0 - (version - since) / length))

    def judge(self, estimate: Tensor, late: Tensor, truth: Tensor, version: int, memory: Memory) -> tuple[float, float]:
        """E1 and E2; it may set the switch, once. `version` is the current one."""
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
