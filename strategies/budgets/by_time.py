"""The largest LoRA rank that fits a client's declared bandwidth, speed and memory, with fewer steps if necessary.

With c(r) trained numbers, s(r) bytes sent, S steps of n samples, F forward operations a sample of the frozen model and
T positions in it,

    transfer   2 latency + s(r) / up + s(down) / down          <= transfer_seconds
    compute    S n (2 F + 6 T c(r)) / flops_per_s              <= compute_seconds
    memory     M_0 + c(r) b + a m(r)                           <= memory_bytes

with c(r) and m(r) times `pool` in the last two, where clients store more rows than they send.
A step of a frozen model is its forward pass and its backward pass without weight gradients, 2 F; a trained parameter
costs six operations per position. For clients that declare seconds per step or per sample the compute time does not
depend on the rank. Ranks by client: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device
Foundation Models", arXiv:2401.06432.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedhet.population.profile import Profile
from strategies.budgets.rank import AbstractRank, Cost

SLACK = 1e-9
"""Tolerance, in steps, for quotients that rounding puts just below an integer."""


@dataclass(frozen=True)
class ByTime(AbstractRank):
    """The largest LoRA rank that fits a client's declared bandwidth, speed and memory.

    transfer_seconds, compute_seconds: time limits of one job; infinite: no limit. min_steps: a rank fits if this many
    steps fit, and the client then gets as many of the requested steps as fit; None: all requested steps must fit.
    down_rank: rank of the adapters that the server sends, such as the sum of all ranks for a stack; 0: the client's.
    base_flops: F, forward floating-point operations per sample; required if a client declares flops_per_s.

    Raises ValueError for values out of range, and for a speed in flops_per_s without base_flops.
    """

    transfer_seconds: float = math.inf
    compute_seconds: float = math.inf
    min_steps: int | None = None
    down_rank: int = 0
    base_flops: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("transfer_seconds", "compute_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more seconds; .inf for no limit")
        if self.min_steps is not None and self.min_steps < 1:
            raise ValueError(f"min_steps={self.min_steps} must be at least 1; null: all steps asked for")
        if self.down_rank < 0:
            raise ValueError(f"down_rank={self.down_rank} must not be negative; 0: the client's own rank")
        if self.base_flops is not None and not 0 < self.base_flops < math.inf:
            raise ValueError(f"base_flops={self.base_flops} must be a positive number of FLOPs a sample")

    def fits(self, profile: Profile, rank: int, steps: int, cost: Cost) -> bool:
        least = steps if self.min_steps is None else min(self.min_steps, steps)
        return (
            self.in_memory(profile, rank, cost)
            and self._transfer(profile, rank, cost) <= self.transfer_seconds
            and self._possible(profile, cost, steps) >= least
        )

    def fitted(self, profile: Profile, rank: int, steps: int, cost: Cost) -> int:
        return self._possible(profile, cost, steps)

    def _transfer(self, profile: Profile, rank: int, cost: Cost) -> float:
        down = cost.sent_bytes / rank * (self.down_rank or rank)
        moved = cost.sent_bytes / profile.uplink_bytes_per_s + down / profile.downlink_bytes_per_s
        return 2 * profile.latency_s + moved

    def _possible(self, profile: Profile, cost: Cost, steps: int) -> int:
        """The number of steps, at most `steps`, that fit into compute_seconds."""
        one = self._step(profile, cost)
        if steps * one <= self.compute_seconds:
            return steps
        return math.floor(self.compute_seconds / one + SLACK)

    def _step(self, profile: Profile, cost: Cost) -> float:
        if profile.flops_per_s is None:
            return profile.seconds_per_step(self.batch)
        if self.base_flops is None:
            raise ValueError(
                f"client {profile.name} declares flops_per_s: set budget.base_flops to the model's FLOPs a sample"
            )
        return (
            self.batch * (2 * self.base_flops + 6 * self.positions * self.pool * cost.parameters) / profile.flops_per_s
        )
