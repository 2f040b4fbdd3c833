"""FedFix's importance weights: an update is divided by its client's rate of contributions, against bias by speed.

The update of client i has the weight d_i = p_i / r_i, where r_i is its long-run number of contributions per version:

    synchronous    r_i = 1
    asynchronous   r_i = (1/m_i) / sum_j (1/m_j)
    fedfix         r_i = 1 / E[ceil(T_i / window)]
    fedbuff        r_i = size * (1/m_i) / sum_j (1/m_j)

for response times T_i of mean m_i seconds. A share f_i of lost tasks multiplies r_i by 1 - f_i, participation with
probability q multiplies it by q. Online, r_i is estimated by the contributions so far over the versions so far.

With few responses the estimates are shrunk. k responses with shrinkage c count as k + c, where the c are: the
constant-time value ceil(m_i / window) for "fedfix", the mean of all clients' m_i for "asynchronous" and "fedbuff", and
versions with a contribution of the client for "online".
Fraboni et al., "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates",
arXiv:2206.10189. The transform scales by d_i / p_i = 1 / r_i: use it with the mean over the population, which
multiplies by p_i without renormalising.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.bases import AbstractTransform
from fedhet.protocols import View
from fedhet.types import Memory, Update

SCHEMES = ("synchronous", "asynchronous", "fedfix", "fedbuff", "online")


def windows(seconds: float, window_seconds: float) -> int:
    """The number of windows of a task of this length, with a tolerance for quotients just above an integer."""
    return max(1, math.ceil(seconds / window_seconds - 1e-9))


def windows_exponential(mean_seconds: float, window_seconds: float) -> float:
    """E[ceil(T / window)] for exponentially distributed T."""
    return 1.0 / -math.expm1(-window_seconds / mean_seconds)


def contributions(
    scheme: str, seconds: Sequence[float], window_seconds: float | None = None, size: int | None = None
) -> list[float]:
    """r_i for clients with constant response times, in the order given."""
    if scheme == "synchronous":
        return [1.0] * len(seconds)
    if scheme == "fedfix":
        assert window_seconds is not None
        return [1.0 / windows(t, window_seconds) for t in seconds]
    total = sum(1.0 / t for t in seconds)
    per_version = 1 if scheme == "asynchronous" else size
    assert per_version is not None
    return [per_version / t / total for t in seconds]


@dataclass(frozen=True)
class Importance(AbstractTransform):
    """FedFix's importance weights: scales an update by 1 / r_i, the inverse of its client's rate of contributions.

    scheme: one of the rows above, or "online". window_seconds: the schedule's, for "fedfix". size: the schedule's, for
    "fedbuff". participation: probability with which a client gets a job. losses: divide by the observed share of tasks
    that were not lost. max_factor: upper bound of the factor; None: no bound. shrinkage: c, in responses; 0 is no
    shrinkage, a larger value makes the first weights less extreme.

    Means are over the responses combined so far; clients not yet observed count as infinitely slow. If several answers
    of one client are combined at once, its latest response time is used for all of them.
    Raises ValueError for values out of range.
    """

    scheme: str = "fedfix"
    window_seconds: float | None = None
    size: int | None = None
    participation: float = 1.0
    losses: bool = False
    max_factor: float | None = None
    shrinkage: float = 0.0

    needs: ClassVar[frozenset[str]] = frozenset({"each"})

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme={self.scheme!r} is unknown; use one of {', '.join(SCHEMES)}")
        if self.scheme == "fedfix" and not (self.window_seconds or 0.0) > 0.0:
            raise ValueError(f"window_seconds={self.window_seconds} must be positive, the same as the schedule's")
        if self.scheme == "fedbuff" and not (self.size or 0) >= 1:
            raise ValueError(f"size={self.size} must be at least 1, the same as the schedule's")
        if not 0.0 < self.participation <= 1.0:
            raise ValueError(f"participation={self.participation} is not in (0, 1]; 1: all clients always")
        if self.max_factor is not None and not self.max_factor >= 1.0:
            raise ValueError(f"max_factor={self.max_factor} must be at least 1; null is no bound")
        if not 0.0 <= self.shrinkage < math.inf:
            raise ValueError(f"shrinkage={self.shrinkage} must be 0 or a number of responses, such as 5")

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        if "version" not in memory or int(memory["version"]) != view.version:
            self._record(view, memory)
        client = update.job.client
        factor = self._factor(client, view, memory) / self.participation
        if self.losses:
            seen = view.observed(client)
            factor *= (seen.finished + seen.failed) / max(1, seen.finished)
        if self.max_factor is not None:
            factor = min(factor, self.max_factor)
        return replace(update, scale=update.scale * factor)

    def _factor(self, client: int, view: View, memory: Memory) -> float:
        """1 / r_i before losses and participation."""
        if self.scheme == "synchronous":
            return 1.0
        count, c = float(memory["count"][client]), self.shrinkage
        if self.scheme == "online":
            return max(1.0, (view.version + 1 + c) / (count + c))
        seconds = float(memory["seconds"][client])
        if self.scheme == "fedfix":
            assert self.window_seconds is not None
            constant = windows(seconds / count, self.window_seconds)
            return (float(memory["windows"][client]) + c * constant) / (count + c)
        seen = memory["count"] > 0
        counts, totals = memory["count"][seen], memory["seconds"][seen]
        usual = float((totals / counts).mean())
        rates = (counts + c) / (totals + c * usual)
        per_version = self.size if self.scheme == "fedbuff" and self.size is not None else 1
        return (seconds + c * usual) / (count + c) * float(rates.sum()) / per_version

    def _record(self, view: View, memory: Memory) -> None:
        """Record the response times of all clients of this combination, before the first factor is computed."""
        memory["version"] = torch.tensor(view.version)
        room = 1 + max(job.client for job in view.cohort)
        for name in ("count", "seconds", "windows"):
            memory[name] = _grown(memory.get(name), room)
        for job in view.cohort:
            seconds = (view.observed(job.client).seconds_per_step or 0.0) * max(1, job.budget.steps)
            memory["count"][job.client] += 1.0
            memory["seconds"][job.client] += max(seconds, 1e-9)
            if self.window_seconds is not None:
                memory["windows"][job.client] += float(windows(seconds, self.window_seconds))


def _grown(column: Tensor | None, room: int) -> Tensor:
    """A float64 column of at least `room` numbers, with zeros at the end; its size doubles when it grows."""
    old = torch.zeros(0, dtype=torch.float64) if column is None else column
    if len(old) >= room:
        return old.clone()
    return torch.cat([old, torch.zeros(max(room, 2 * len(old)) - len(old), dtype=torch.float64)])
