"""Everybody is done in time: more epochs for the fast, the last layers only for the slow.

With c_i the seconds of one epoch of the whole model on client i and m_i those of its transfer, both ways,

    T = the time within which a share of the clients can do an epoch of the whole model
    epochs_i = max(1, floor((T - m_i) / c_i)),      width_i = min(1, T / (c_i + m_i)).

A width is the share of the layers that are trained; training and transfer are taken to cost that share.
Zhang et al., "TimelyFL: Heterogeneity-aware Asynchronous Federated Learning with Adaptive Partial Training",
arXiv:2304.06947; there T is the k-th smallest c_i + m_i of the clients asked. Belongs with the space of last layers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from fedhet.numerics.tree import Schema
from fedhet.protocols import View
from fedhet.types import Budget, ClientId

SLACK = 1e-9
"""Epochs: a quotient just below a whole number counts as it."""


@dataclass(frozen=True)
class Timely:
    """Epochs and width for a time.

    share: of the clients, those that can do an epoch of the whole model in time T, in (0, 1]; with 1 everybody can.
    seconds: T itself, instead of finding it. batch: samples a step, the work's. max_epochs: of a fast client, at most.
    min_width: of a slow one, at least; it may then be late. sample: T is found from this many clients or a few
        more, evenly picked, if there are more.

    Speeds and bandwidths are those that clients declare: an observed time would depend on the width it was observed
    at. A client that declares floating-point operations alone counts with its observed seconds per step, transfer
    included, and gets one epoch of the whole model until there is one. Raises ValueError for values out of range.
    """

    share: float = 0.5
    seconds: float | None = None
    batch: int = 32
    max_epochs: int = 10
    min_width: float = 0.05
    sample: int = 64

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share={self.share} is not in (0, 1]; 0.5 lets half of the clients train the whole model")
        if self.seconds is not None and not (self.seconds > 0.0 and math.isfinite(self.seconds)):
            raise ValueError(f"seconds={self.seconds} must be a positive, finite time; null finds it")
        for name in ("batch", "max_epochs", "sample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0.0 < self.min_width <= 1.0:
            raise ValueError(f"min_width={self.min_width} is not in (0, 1]; 1 trains the whole model whatever it takes")

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
        """T: the ceil(share * n)-th smallest time of the clients whose time is known; None if of nobody."""
        stride = max(1, len(view.roster) // self.sample)
        clients = itertools.islice(view.roster, 0, None, stride)
        units = [self._unit(c, max(1, math.ceil(view.roster.examples(c) / self.batch)), view) for c in clients]
        times = sorted(compute + transfer for compute, transfer in filter(None, units))
        return times[math.ceil(self.share * len(times) - SLACK) - 1] if times else None

    def _unit(self, client: ClientId, steps: int, view: View) -> tuple[float, float] | None:
        """Seconds of an epoch of the whole model, and of its transfer; None if not known."""
        profile = view.roster[client]
        if profile.flops_per_s is not None:
            seen = view.observed(client).seconds_per_step
            return None if seen is None else (max(seen * steps, SLACK), 0.0)
        size = Schema.of(view.state).nbytes
        transfer = 2 * profile.latency_s + size / profile.uplink_bytes_per_s + size / profile.downlink_bytes_per_s
        return profile.seconds_per_step(self.batch) * steps, transfer
