"""TimelyFL's budget: all clients finish in time T, fast ones with more epochs, slow ones with the last layers only.

With c_i the seconds of one epoch of the full model on client i and m_i those of its transfer, both ways,

    T = the time within which a share of the clients can train the full model for an epoch
    epochs_i = max(1, floor((T - m_i) / c_i)),      width_i = min(1, T / (c_i + m_i)).

The width is the share of the layers that are trained; training and transfer are assumed to cost that share.
Zhang et al., "TimelyFL: Heterogeneity-aware Asynchronous Federated Learning with Adaptive Partial Training",
arXiv:2304.06947; there T is the k-th smallest c_i + m_i of the sampled clients. Use it with the space `last_layers`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from fedhet.numerics.tree import Schema
from fedhet.protocols import View
from fedhet.types import Budget, ClientId

SLACK = 1e-9
"""Tolerance, in epochs, for quotients that rounding puts just below an integer."""


@dataclass(frozen=True)
class Timely:
    """TimelyFL: epochs and width with which every client finishes in a time T.

    share: share of the clients that can train the full model for an epoch in time T, in (0, 1]. seconds: T itself; None
    computes it from `share`. batch: samples per step, the same as the work's. max_epochs: upper bound for fast clients.
    min_width: lower bound for slow clients, which may then be late. sample: number of clients from which T is computed
    in a larger fleet, at even distances in the roster.

    Speeds and bandwidths are those that clients declare: an observed time depends on the width of the observed job.
    A client that declares floating-point operations alone counts with its observed seconds per step, transfer included,
    and gets one epoch of the full model before the first observation. Raises ValueError for values out of range.
    """

    share: float = 0.5
    seconds: float | None = None
    batch: int = 32
    max_epochs: int = 10
    min_width: float = 0.05
    sample: int = 64

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share={self.share} is not in (0, 1]; 0.5 lets half of the clients train the full model")
        if self.seconds is not None and not (self.seconds > 0.0 and math.isfinite(self.seconds)):
            raise ValueError(f"seconds={self.seconds} must be a positive, finite time; null finds it")
        for name in ("batch", "max_epochs", "sample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0.0 < self.min_width <= 1.0:
            raise ValueError(f"min_width={self.min_width} is not in (0, 1]; 1 always trains the full model")

    def __call__(self, client: ClientId, view: View) -> Budget:
        steps = max(1, math.ceil(view.roster.examples(client) / self.batch))
        own = self._unit(client, steps, view)
        limit = self.seconds if self.seconds is not None else self._limit(view)
        if own is None or limit is None:
            return Budget(steps)
        compute, transfer = own
        fit = math.floor(min((limit - transfer) / compute, self.max_epochs) + SLACK)
        width = min(1.0, max(self.min_width, limit / (compute + transfer)))
        return Budget(steps * max(1, fit), width=width)

    def _limit(self, view: View) -> float | None:
        """T: the ceil(share * n)-th smallest time of the clients with a known time; None if there is none."""
        stride = max(1, len(view.roster) // self.sample)
        clients = itertools.islice(view.roster, 0, None, stride)
        units = [self._unit(c, max(1, math.ceil(view.roster.examples(c) / self.batch)), view) for c in clients]
        times = sorted(compute + transfer for compute, transfer in filter(None, units))
        return times[math.ceil(self.share * len(times) - SLACK) - 1] if times else None

    def _unit(self, client: ClientId, steps: int, view: View) -> tuple[float, float] | None:
        """Seconds of an epoch of the full model, and of its transfer; None if not known."""
        profile = view.roster[client]
        if profile.flops_per_s is not None:
            seen = view.observed(client).seconds_per_step
            return None if seen is None else (max(seen * steps, SLACK), 0.0)
        size = Schema.of(view.state).nbytes
        transfer = 2 * profile.latency_s + size / profile.uplink_bytes_per_s + size / profile.downlink_bytes_per_s
        return profile.seconds_per_step(self.batch) * steps, transfer
