"""Which late updates bring something nobody else has: the ones that point away from all fresh ones.

    c(a, b) = 1 - <a, b> / (|a| |b|),   theta = mean (or a quantile) of c over pairs of fresh updates
    unique(late) iff the least (or mean) c(late, fresh) is above theta

The latest fresh displacements are kept as peers. With fewer than two of them nothing is known and every late update
counts as unique. The test by cosine against the unstale clients is that of arXiv:2309.13536; its threshold is not
published, theta above is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedhet.types import Memory


def distance(a: Tensor, b: Tensor) -> float:
    """c(a, b) in [0, 2]; 1 if one of the two is zero."""
    norms = float(torch.dot(a, a).double().sqrt() * torch.dot(b, b).double().sqrt())
    return 1.0 if norms == 0.0 else max(0.0, 1.0 - float(torch.dot(a, b)) / norms)


@dataclass(frozen=True)
class Unique:
    """peers: fresh displacements that are kept, the oldest goes first; 0 switches the test off (all are unique).
    nearest: "min" or "mean" of the distances to them. quantile: of their own distances; None is the mean.
    Where clients are unlike their own distances are large, so that hardly anything would stand out from the mean.
    Raises ValueError for values out of range.
    """

    peers: int = 10
    nearest: str = "min"
    quantile: float | None = 0.1

    def __post_init__(self) -> None:
        if self.peers < 0 or self.peers == 1:
            raise ValueError(f"peers={self.peers} must be at least 2, or 0 for no test")
        if self.nearest not in ("min", "mean"):
            raise ValueError(f"nearest={self.nearest!r} is unknown; use 'min' or 'mean'")
        if self.quantile is not None and not 0.0 <= self.quantile <= 1.0:
            raise ValueError(f"quantile={self.quantile} is not in [0, 1]; null is the mean")

    def remember(self, delta: Tensor, memory: Memory) -> None:
        """A fresh displacement comes in."""
        if self.peers == 0:
            return
        count = int(memory.get("peers", torch.zeros((), dtype=torch.int64)))
        memory[f"peer/{count % self.peers}"] = delta.clone()
        memory["peers"] = torch.tensor(count + 1)

    def __call__(self, delta: Tensor, memory: Memory) -> bool:
        """Whether a late displacement is unlike the peers."""
        count = min(self.peers, int(memory.get("peers", torch.zeros((), dtype=torch.int64))))
        if count < 2:
            return True
        peers = [memory[f"peer/{i}"] for i in range(count)]
        own = [distance(a, b) for i, a in enumerate(peers) for b in peers[:i]]
        theta = float(np.mean(own)) if self.quantile is None else float(np.quantile(own, self.quantile))
        away = [distance(delta, peer) for peer in peers]
        return (min(away) if self.nearest == "min" else float(np.mean(away))) > theta
