"""Uniqueness test of late updates: those whose direction differs from all fresh ones are inverted.

    c(a, b) = 1 - <a, b> / (|a| |b|),   theta = mean (or a quantile) of c over pairs of fresh updates
    unique(late) iff the smallest (or mean) c(late, fresh) is above theta

The latest fresh displacements are stored as peers. With fewer than two of them every late update counts as unique. The
cosine test against clients without staleness is that of arXiv:2309.13536; its threshold is not published, and theta is
chosen here.
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
    """The uniqueness test of late updates by cosine distance to fresh ones.

    peers: number of fresh displacements to store; 0: no test (all are unique). nearest: "min" or "mean" of the
    distances to them. quantile: of the distances among them; None: the mean. For heterogeneous clients these distances
    are large, so that few late updates exceed the mean. Raises ValueError for values out of range.
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
        """Store a fresh displacement as a peer."""
        if self.peers == 0:
            return
        count = int(memory.get("peers", torch.zeros((), dtype=torch.int64)))
        memory[f"peer/{count % self.peers}"] = delta.clone()
        memory["peers"] = torch.tensor(count + 1)

    def __call__(self, delta: Tensor, memory: Memory) -> bool:
        """Whether a late displacement is unique."""
        count = min(self.peers, int(memory.get("peers", torch.zeros((), dtype=torch.int64))))
        if count < 2:
            return True
        peers = [memory[f"peer/{i}"] for i in range(count)]
        own = [distance(a, b) for i, a in enumerate(peers) for b in peers[:i]]
        theta = float(np.mean(own)) if self.quantile is None else float(np.quantile(own, self.quantile))
        away = [distance(delta, peer) for peer in peers]
        return (min(away) if self.nearest == "min" else float(np.mean(away))) > theta
