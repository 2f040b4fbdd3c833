"""Speed levels: steps, rank and width of a job by the client's seconds per step.

Capability levels with a width each: Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient
Federated Learning for Heterogeneous Clients", arXiv:2010.01264. The speed is the one the server observed, transfer
included, or before the first observation the one that the client declares.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from fedhet.protocols import View
from fedhet.types import Budget, ClientId


@dataclass(frozen=True)
class BySpeed:
    """Steps, rank and width by speed level: level k is for seconds per step in (limits[k-1], limits[k]].

    limits: ascending, in seconds per step; the last level has no upper limit. steps, ranks, widths: one value per
    level, so one more than limits, or a single value for all levels. batch: samples per step, to convert declared
    speeds per sample. Clients that declare only floating-point operations start at the last level.

    Raises ValueError for lists that do not fit together and values out of range.
    """

    limits: Sequence[float] = ()
    steps: Sequence[int] = (1,)
    ranks: Sequence[int] = (0,)
    widths: Sequence[float] = (1.0,)
    batch: int = 1

    def __post_init__(self) -> None:
        if not all(0.0 < a < b for a, b in itertools.pairwise([*self.limits, float("inf")])):
            raise ValueError(f"limits={list(self.limits)} must be positive and ascending, in seconds per step")
        for name in ("steps", "ranks", "widths"):
            values = getattr(self, name)
            if len(values) not in (1, len(self.limits) + 1):
                raise ValueError(f"{name}={list(values)} needs 1 value or {len(self.limits) + 1}, one per level")
        if min(self.steps) < 1:
            raise ValueError(f"steps={list(self.steps)} must be at least 1 each")
        if min(self.ranks) < 0:
            raise ValueError(f"ranks={list(self.ranks)} must not be negative; 0 means that no rank is used")
        if not all(0.0 < w <= 1.0 for w in self.widths):
            raise ValueError(f"widths={list(self.widths)} must be in (0, 1]; 1.0 is the full model")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch} must be at least 1 sample")

    def __call__(self, client: ClientId, view: View) -> Budget:
        s = view.observed(client).seconds_per_step
        if s is None:
            profile = view.roster[client]
            declared = profile.sec_per_step is not None or profile.sec_per_sample is not None
            s = profile.seconds_per_step(self.batch) if declared else float("inf")
        level = bisect_left(self.limits, s - 1e-9)
        steps, rank, width = (values[min(level, len(values) - 1)] for values in (self.steps, self.ranks, self.widths))
        return Budget(int(steps), int(rank), float(width))
