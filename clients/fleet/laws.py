"""Fleets whose speeds follow a distribution from the literature.

Homogeneous, normal and exponential are FedCompass's (arXiv:2309.14675); the linear grid is FedFix's F-x
(arXiv:2206.10189); half-normal is FedBuff's (arXiv:2106.06639).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.fleet.base import AbstractFleet, Drawn


@dataclass(frozen=True)
class Homogeneous(AbstractFleet):
    """All clients need `sec_per_step` seconds per step."""

    def speeds(self, rng: np.random.Generator) -> Drawn:
        return Drawn(np.full(self.clients, self.sec_per_step))


@dataclass(frozen=True)
class Normal(AbstractFleet):
    """Seconds per step ~ N(mu, (cv mu)^2); draws below mu / 100 are drawn again."""

    cv: float = 0.3

    def speeds(self, rng: np.random.Generator) -> Drawn:
        if not 0 <= self.cv <= 1:
            raise ValueError(f"cv={self.cv} must be in [0, 1]")
        out, again = rng.normal(1.0, self.cv, self.clients), 0
        while (low := out < 0.01).any():
            again += int(low.sum())
            out[low] = rng.normal(1.0, self.cv, int(low.sum()))
        note = f"{again} draws below a hundredth of the mean were drawn again" if again else ""
        return Drawn(out * self.sec_per_step, note)


@dataclass(frozen=True)
class Exponential(AbstractFleet):
    """Seconds per step ~ Exp(mu), at least `floor` * mu, so that no single client does most of the work.

    The floor raises the mean to mu (floor + exp(-floor)).
    """

    floor: float = 0.2

    def speeds(self, rng: np.random.Generator) -> Drawn:
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor={self.floor} must be in (0, 1], a share of the mean")
        drawn = rng.exponential(1.0, self.clients)
        note = _cut(int((drawn < self.floor).sum()), self.clients, f"faster than {self.floor:g} mu and set to it")
        return Drawn(np.maximum(drawn, self.floor) * self.sec_per_step, note)


@dataclass(frozen=True)
class Lognormal(AbstractFleet):
    """Seconds per step ~ mu * exp(N(-sigma^2/2, sigma^2)): mean mu, a long tail of slow clients."""

    sigma: float = 0.8

    def speeds(self, rng: np.random.Generator) -> Drawn:
        if not self.sigma >= 0:
            raise ValueError(f"sigma={self.sigma} must be 0 or more")
        drawn = np.exp(rng.normal(-(self.sigma**2) / 2, self.sigma, self.clients))
        return Drawn(drawn * self.sec_per_step)


@dataclass(frozen=True)
class HalfNormal(AbstractFleet):
    """Seconds per step ~ floor * mu + |N(0, sd^2)| * mu, with mean mu (floor + 0.80 sd)."""

    sd: float = 1.0
    floor: float = 0.2

    def speeds(self, rng: np.random.Generator) -> Drawn:
        if not (self.sd >= 0 and self.floor > 0):
            raise ValueError(f"sd={self.sd} must be 0 or more and floor={self.floor} positive")
        drawn = self.floor + np.abs(rng.normal(0.0, self.sd, self.clients))
        return Drawn(drawn * self.sec_per_step)


@dataclass(frozen=True)
class Pareto(AbstractFleet):
    """Seconds per step ~ mu * Pareto(alpha), from mu, the fastest, to at most `cap` * mu."""

    alpha: float = 1.5
    cap: float = 50.0

    def speeds(self, rng: np.random.Generator) -> Drawn:
        if not (self.alpha > 0 and self.cap >= 1):
            raise ValueError(f"alpha={self.alpha} must be positive and cap={self.cap} at least 1")
        drawn = 1 + rng.pareto(self.alpha, self.clients)
        note = _cut(int((drawn > self.cap).sum()), self.clients, f"slower than {self.cap:g} mu and set to it")
        return Drawn(np.minimum(drawn, self.cap) * self.sec_per_step, note)


@dataclass(frozen=True)
class LinearGrid(AbstractFleet):
    """Seconds per step equally spaced from (1 - x) mu to mu = `sec_per_step`; FedFix's F-80 is x = 0.8."""

    x: float = 0.8

    def speeds(self, rng: np.random.Generator) -> Drawn:
        if not 0 <= self.x < 1:
            raise ValueError(f"x={self.x} must be in [0, 1)")
        grid = 1 - self.x * np.arange(self.clients) / max(1, self.clients - 1)
        return Drawn(grid * self.sec_per_step)


@dataclass(frozen=True)
class Tiers(AbstractFleet):
    """Tiers of equal size with `sec_per_step` times one factor per tier."""

    factors: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)

    def speeds(self, rng: np.random.Generator) -> Drawn:
        if not self.factors or min(self.factors) <= 0:
            raise ValueError(f"factors={self.factors} must be positive numbers")
        tier = np.arange(self.clients) * len(self.factors) // self.clients
        return Drawn(np.asarray(self.factors)[tier] * self.sec_per_step)


def _cut(count: int, clients: int, what: str) -> str:
    return f"{count} of {clients} draws were {what}" if count else ""
