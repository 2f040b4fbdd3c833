"""How a client's speed varies: from job to job (jitter), and slowly over the run (drift)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


class ProfileError(ValueError):
    """A profile that makes no sense: names the field, the value and the unit."""


WIDEST_NORMAL = 1 / 3
"""Relative spread up to which a normal factor's negative tail (and the shift of the mean by cutting it) is nothing."""


@dataclass(frozen=True, slots=True)
class Jitter:
    """A multiplicative factor of mean 1 per job: dist is none, normal, lognormal or gamma, cv its relative spread."""

    dist: str = "none"
    cv: float = 0.0

    def __post_init__(self) -> None:
        if self.dist not in ("none", "normal", "lognormal", "gamma"):
            raise ProfileError(f"jitter dist={self.dist!r}: use none, normal, lognormal or gamma")
        if not 0 <= self.cv < math.inf:
            raise ProfileError(f"jitter cv={self.cv} must be 0 or more")
        if self.dist == "normal" and self.cv > WIDEST_NORMAL:
            raise ProfileError(f"jitter cv={self.cv} of a normal must be at most 1/3; use lognormal or gamma for more")

    def factor(self, normal: float) -> float:
        """The factor for one standard normal draw. The gamma's own draws hang on it: no other draw is moved."""
        if self.dist == "none" or self.cv == 0:
            return 1.0
        if self.dist == "normal":
            return max(0.01, 1.0 + self.cv * normal)
        if self.dist == "lognormal":
            var = math.log1p(self.cv**2)
            return math.exp(math.sqrt(var) * normal - var / 2)
        key = int.from_bytes(struct.pack("<d", normal), "little")
        return float(np.random.Generator(np.random.Philox(key=key)).gamma(1 / self.cv**2, self.cv**2))


@dataclass(frozen=True, slots=True)
class Drift:
    """A slow change of compute time, a multiplier of the declared one.

    `step` multiplies by `factor` from `at_s` on. `sine` swings by `amplitude` with period `period_s`. `random_walk`
    changes every `period_s` by a factor exp(N(0, sigma^2)), held in [1/4, 4]; `seed` says which walk.
    """

    kind: str = "none"
    factor: float = 1.0
    at_s: float = 0.0
    amplitude: float = 0.0
    period_s: float = 1.0
    sigma: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("none", "step", "sine", "random_walk"):
            raise ProfileError(f"drift kind={self.kind!r}: use none, step, sine or random_walk")
        if not (0 < self.factor < math.inf and 0 <= self.amplitude < 1 and 0 < self.period_s < math.inf):
            raise ProfileError(f"drift {self}: factor and period_s must be positive, amplitude in [0, 1)")
        if not (0 <= self.sigma < math.inf and self.seed >= 0):
            raise ProfileError(f"drift {self}: sigma and seed must be 0 or more")

    def at(self, now_s: float) -> float:
        """The multiplier of compute time at a second."""
        if self.kind == "step":
            return self.factor if now_s >= self.at_s else 1.0
        if self.kind == "sine":
            return 1.0 + self.amplitude * math.sin(2 * math.pi * now_s / self.period_s)
        if self.kind == "random_walk":
            walked = self.sigma * _walk(self.seed, int(now_s // self.period_s))
            return math.exp(min(math.log(4.0), max(-math.log(4.0), walked)))
        return 1.0


@lru_cache(maxsize=4096)
def _walk(seed: int, steps: int) -> float:
    """The sum of the first `steps` standard normals of this walk; cost O(steps)."""
    return float(np.random.Generator(np.random.Philox(key=seed)).standard_normal(steps).sum())
