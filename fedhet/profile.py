"""What a client declares of itself, and how long a job takes on it.

SI units with explicit suffixes. A job's trip is download, compute, upload, each with jitter, drift, availability:

    t_down = latency + bytes_down / downlink     t_up = latency + bytes_up / uplink
    t_compute = sec_per_step * Q | sec_per_sample * Q * batch | 3 * flops_per_sample * Q * batch / flops_per_s

(one backward pass costs two forward passes). Durations become integer nanoseconds once, and only sums follow.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

NS = 1_000_000_000


class ProfileError(ValueError):
    """A profile that makes no sense: names the field, the value and the unit."""


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

    def factor(self, normal: float, uniform_rng: np.random.Generator) -> float:
        """The factor for one standard normal draw (gamma draws from the generator instead)."""
        if self.dist == "none" or self.cv == 0:
            return 1.0
        if self.dist == "normal":
            return max(0.01, 1.0 + self.cv * normal)
        if self.dist == "lognormal":
            var = math.log1p(self.cv**2)
            return math.exp(math.sqrt(var) * normal - var / 2)
        return float(uniform_rng.gamma(1 / self.cv**2, self.cv**2))


@dataclass(frozen=True, slots=True)
class Drift:
    """A slow change of speed over the run: `step` multiplies by `factor` from `at_s` on, `sine` swings by `amplitude`
    with period `period_s`."""

    kind: str = "none"
    factor: float = 1.0
    at_s: float = 0.0
    amplitude: float = 0.0
    period_s: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("none", "step", "sine"):
            raise ProfileError(f"drift kind={self.kind!r}: use none, step or sine")
        if not (self.factor > 0 and 0 <= self.amplitude < 1 and self.period_s > 0):
            raise ProfileError(f"drift {self}: factor and period_s must be positive, amplitude in [0, 1)")

    def at(self, now_s: float) -> float:
        """The multiplier of compute time at a second."""
        if self.kind == "step":
            return self.factor if now_s >= self.at_s else 1.0
        if self.kind == "sine":
            return 1.0 + self.amplitude * math.sin(2 * math.pi * now_s / self.period_s)
        return 1.0


@dataclass(frozen=True, slots=True)
class Trip:
    """When a job's phases end, in absolute integer nanoseconds. If `lost` says why, it is lost at `arrived_ns`."""

    sent_ns: int
    downloaded_ns: int
    trained_ns: int
    arrived_ns: int
    lost: str | None = None


POLICIES = ("pause", "abort", "finish")


@dataclass(frozen=True, slots=True)
class Profile:
    """One client. Exactly one of flops_per_s (FLOP/s), sec_per_step (s) and sec_per_sample (s) is given."""

    name: str = ""
    device_class: str = ""
    num_examples: int = 0
    max_rank: int = 0
    flops_per_s: float | None = None
    sec_per_step: float | None = None
    sec_per_sample: float | None = None
    compute_jitter: Jitter = Jitter()
    drift: Drift = Drift()
    memory_bytes: float = math.inf
    uplink_bytes_per_s: float = math.inf
    downlink_bytes_per_s: float = math.inf
    latency_s: float = 0.0
    network_jitter: Jitter = Jitter()
    availability: tuple[tuple[float, float], ...] = ()
    availability_period_s: float | None = None
    offline_policy: str = "pause"
    dropout_prob: float = 0.0
    dropout_point: str = "uniform"
    silent: bool = False

    def __post_init__(self) -> None:
        speeds = {k: getattr(self, k) for k in ("flops_per_s", "sec_per_step", "sec_per_sample")}
        given = {k: v for k, v in speeds.items() if v is not None}
        if len(given) != 1:
            raise ProfileError(f"give exactly one of {', '.join(speeds)}; got {sorted(given) or 'none'}")
        for key, value in given.items():
            if not 0 < value < math.inf:
                unit = "FLOP/s" if key == "flops_per_s" else "seconds"
                raise ProfileError(f"{key}={value} must be a positive finite number of {unit}")
        for key, unit in (
            ("memory_bytes", "bytes"),
            ("uplink_bytes_per_s", "bytes/s"),
            ("downlink_bytes_per_s", "bytes/s"),
        ):
            if not getattr(self, key) > 0:
                raise ProfileError(f"{key}={getattr(self, key)} must be a positive number of {unit}")
        if not 0 <= self.latency_s < math.inf:
            raise ProfileError(f"latency_s={self.latency_s} must be 0 or more seconds")
        if not 0 <= self.dropout_prob <= 1:
            raise ProfileError(f"dropout_prob={self.dropout_prob} must be a probability in [0, 1]")
        if self.dropout_point not in ("uniform", "start", "end"):
            raise ProfileError(f"dropout_point={self.dropout_point!r}: use uniform, start or end")
        if self.offline_policy not in POLICIES:
            raise ProfileError(f"offline_policy={self.offline_policy!r}: use {', '.join(POLICIES)}")
        if self.num_examples < 0 or self.max_rank < 0:
            raise ProfileError("num_examples and max_rank must be 0 or more")
        _check_windows(self.availability, self.availability_period_s)

    # Availability

    def online(self, now_s: float) -> bool:
        """Whether the client is reachable at this second."""
        return not self.availability or self.next_online(now_s) == now_s

    def next_online(self, now_s: float) -> float | None:
        """The first second from now on at which it is reachable; None if never again."""
        if not self.availability:
            return now_s
        found = _window(round(now_s * NS), self.availability, self.availability_period_s)
        if found is None:
            return None
        return now_s if found[0] <= round(now_s * NS) else found[0] / NS

    # Time

    def seconds_per_step(self, batch: int, flops_per_sample: float | None = None) -> float:
        """Declared seconds of one optimiser step on `batch` samples. Raises ProfileError without the needed FLOPs."""
        if self.sec_per_step is not None:
            return self.sec_per_step
        if self.sec_per_sample is not None:
            return self.sec_per_sample * batch
        if flops_per_sample is None:
            raise ProfileError(f"flops_per_s={self.flops_per_s} needs the model's FLOPs per sample")
        assert self.flops_per_s is not None
        return 3.0 * flops_per_sample * batch / self.flops_per_s

    def trip(
        self,
        *,
        at_ns: int,
        steps: int,
        batch: int,
        bytes_down: int,
        bytes_up: int,
        flops_per_sample: float | None,
        rng: np.random.Generator,
    ) -> Trip:
        """The phases of one job. `rng` is this job's stream; the same draws are made whatever is switched on."""
        lot, point = rng.random(2)
        normals = rng.standard_normal(3)
        down = self.latency_s + bytes_down / self.downlink_bytes_per_s
        up = self.latency_s + bytes_up / self.uplink_bytes_per_s
        compute = self.seconds_per_step(batch, flops_per_sample) * steps
        down_ns = round(down * self.network_jitter.factor(normals[0], rng) * NS)
        compute_ns = round(compute * self.compute_jitter.factor(normals[1], rng) * self.drift.at(at_ns / NS) * NS)
        up_ns = round(up * self.network_jitter.factor(normals[2], rng) * NS)
        if lot < self.dropout_prob:
            share = {"uniform": float(point), "start": 0.0, "end": 1.0}[self.dropout_point]
            return self._lost(at_ns, down_ns, compute_ns, up_ns, round(share * (down_ns + compute_ns + up_ns)))
        if not self.availability:
            a, b = at_ns + down_ns, at_ns + down_ns + compute_ns
            return Trip(at_ns, a, b, b + up_ns)
        return self._warped(at_ns, down_ns, compute_ns, up_ns)

    def _lost(self, at_ns: int, down_ns: int, compute_ns: int, up_ns: int, done_ns: int) -> Trip:
        ends = [at_ns + min(done_ns, down_ns), at_ns + min(done_ns, down_ns + compute_ns), at_ns + done_ns]
        if self.availability:
            ends = [warp(at_ns, e - at_ns, self.availability, self.availability_period_s) or e for e in ends]
        return Trip(at_ns, ends[0], ends[1], ends[2], "dropout")

    def _warped(self, at_ns: int, down_ns: int, compute_ns: int, up_ns: int) -> Trip:
        windows, period = self.availability, self.availability_period_s
        work = (down_ns, down_ns + compute_ns, down_ns + compute_ns + up_ns)
        start = _window(at_ns, windows, period)
        if start is None:
            return Trip(at_ns, at_ns, at_ns, at_ns, "offline")
        begin, end = start
        if self.offline_policy == "finish" or begin + work[2] <= end:
            return Trip(at_ns, begin + work[0], begin + work[1], begin + work[2])
        if self.offline_policy == "abort":
            a, b = min(begin + work[0], end), min(begin + work[1], end)
            return Trip(at_ns, a, b, end, "offline")
        ends = [warp(at_ns, w, windows, period) for w in work]
        known = [e for e in ends if e is not None]
        if len(known) < len(ends):  # its last window closes before it is done
            known += [end] * (len(ends) - len(known))
            return Trip(at_ns, known[0], known[1], max(known), "offline")
        return Trip(at_ns, known[0], known[1], known[2])

    # Records

    def to_dict(self) -> dict[str, Any]:
        """Flat scalars for a Flower ConfigRecord: what is None or infinite is left out, nested values are JSON."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None or value == math.inf:
                continue
            if isinstance(value, (Jitter, Drift)):
                value = json.dumps({g.name: getattr(value, g.name) for g in fields(value)})
            elif isinstance(value, tuple):
                value = json.dumps(value)
            out[f.name] = value
        return out

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Profile:
        """The inverse of `to_dict`. Raises ProfileError for an unknown field, naming the nearest."""
        known = {f.name for f in fields(cls)}
        values = dict(given)
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                raise ProfileError(f"unknown field {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        for key, kind in (("compute_jitter", Jitter), ("network_jitter", Jitter), ("drift", Drift)):
            if key in values and not isinstance(values[key], kind):
                raw = json.loads(values[key]) if isinstance(values[key], str) else values[key]
                values[key] = kind(**raw)
        if "availability" in values:
            raw = values["availability"]
            raw = json.loads(raw) if isinstance(raw, str) else raw
            values["availability"] = tuple((float(a), float(b)) for a, b in raw)
        return cls(**values)


def _check_windows(windows: tuple[tuple[float, float], ...], period: float | None) -> None:
    if period is not None and not 0 < period < math.inf:
        raise ProfileError(f"availability_period_s={period} must be a positive number of seconds")
    if period is not None and not windows:
        raise ProfileError("availability_period_s needs availability intervals in seconds")
    last = 0.0
    for start, end in windows:
        if not (last <= start < end):
            raise ProfileError(f"availability [{start}, {end}) s: intervals must be sorted, disjoint and not empty")
        if period is not None and end > period:
            raise ProfileError(f"availability [{start}, {end}) s reaches beyond the period of {period} s")
        last = end


def _window(at_ns: int, windows: tuple[tuple[float, float], ...], period: float | None) -> tuple[int, int] | None:
    """The eligible interval that holds `at_ns`, or the next one: (first usable ns, end ns); None if there is none."""
    span = round(period * NS) if period is not None else 0
    cycle = at_ns // span if span else 0
    for lap in (cycle, cycle + 1) if span else (0,):
        for start, end in windows:
            begin, stop = lap * span + round(start * NS), lap * span + round(end * NS)
            if at_ns < stop:
                return max(at_ns, begin), stop
    return None


def warp(at_ns: int, work_ns: int, windows: tuple[tuple[float, float], ...], period: float | None) -> int | None:
    """When `work_ns` of eligible time have passed from `at_ns` on (policy pause); None if they never do."""
    if not windows:
        return at_ns + work_ns
    if period is not None:
        span = round(period * NS)
        eligible = sum(round(e * NS) - round(s * NS) for s, e in windows)
        laps = max(0, work_ns // eligible - 1)  # whole periods at once: work may be far longer than a period
        if laps:
            at_ns, work_ns = at_ns + laps * span, work_ns - laps * eligible
    while True:
        found = _window(at_ns, windows, period)
        if found is None:
            return None
        begin, end = found
        if begin + work_ns <= end:
            return begin + work_ns
        work_ns -= end - begin
        at_ns = end
