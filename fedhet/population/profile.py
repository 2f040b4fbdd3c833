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
from typing import Any, TypeVar

import numpy as np

from fedhet.population.availability import NS, Calendar, calendar, seconds, warp
from fedhet.population.speed_variation import Drift, Jitter, ProfileError

__all__ = ["NS", "POLICIES", "Drift", "Jitter", "Profile", "ProfileError", "Timing", "warp"]

V = TypeVar("V", Jitter, Drift)
EVEN, STEADY = Jitter(), Drift()

UNITS = {
    "flops_per_s": "FLOP/s",
    "sec_per_step": "seconds",
    "sec_per_sample": "seconds",
    "memory_bytes": "bytes",
    "uplink_bytes_per_s": "bytes/s",
    "downlink_bytes_per_s": "bytes/s",
    "latency_s": "seconds",
    "availability_period_s": "seconds",
    "num_examples": "samples",
    "max_rank": "ranks",
    "dropout_prob": "probability",
    "energy_joule_per_step": "joules",
    "battery_joule": "joules",
}


@dataclass(frozen=True, slots=True)
class Timing:
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
    compute_jitter: Jitter = EVEN
    drift: Drift = STEADY
    memory_bytes: float = math.inf
    uplink_bytes_per_s: float = math.inf
    downlink_bytes_per_s: float = math.inf
    latency_s: float = 0.0
    network_jitter: Jitter = EVEN
    availability: tuple[tuple[float, float], ...] = ()
    availability_period_s: float | None = None
    offline_policy: str = "pause"
    dropout_prob: float = 0.0
    dropout_point: str = "uniform"
    silent: bool = False
    energy_joule_per_step: float | None = None
    battery_joule: float | None = None

    def __post_init__(self) -> None:
        speeds = {k: getattr(self, k) for k in ("flops_per_s", "sec_per_step", "sec_per_sample")}
        given = {k: v for k, v in speeds.items() if v is not None}
        if len(given) != 1:
            raise ProfileError(f"give exactly one of {', '.join(speeds)}; got {sorted(given) or 'none'}")
        for key, value in given.items():
            if not 0 < value < math.inf:
                raise ProfileError(f"{key}={value} must be a positive finite number of {UNITS[key]}")
        for key in ("memory_bytes", "uplink_bytes_per_s", "downlink_bytes_per_s"):
            if not getattr(self, key) > 0:
                raise ProfileError(f"{key}={getattr(self, key)} must be a positive number of {UNITS[key]}")
        for key in ("energy_joule_per_step", "battery_joule"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ProfileError(f"{key}={value} must be a positive finite number of {UNITS[key]}")
        if not 0 <= self.latency_s < math.inf:
            raise ProfileError(f"latency_s={self.latency_s} must be 0 or more seconds")
        if not 0 <= self.dropout_prob <= 1:
            raise ProfileError(f"dropout_prob={self.dropout_prob} must be a probability in [0, 1]")
        if self.dropout_point not in ("uniform", "start", "end"):
            raise ProfileError(f"dropout_point={self.dropout_point!r}: use uniform, start or end")
        if self.offline_policy not in POLICIES:
            raise ProfileError(f"offline_policy={self.offline_policy!r}: use {', '.join(POLICIES)}")
        for key in ("num_examples", "max_rank"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ProfileError(f"{key}={getattr(self, key)} must be 0 or more {UNITS[key]}")
        _check_windows(self.availability, self.availability_period_s)

    # Availability

    @property
    def calendar(self) -> Calendar | None:
        """When the client is reachable; None is always."""
        return calendar(self.availability, self.availability_period_s)

    def online(self, now_s: float) -> bool:
        """Whether the client is reachable at this second."""
        known = self.calendar
        return known is None or known.online(round(now_s * NS))

    def next_online(self, now_s: float) -> float | None:
        """The first second from now on at which it is reachable; None if never again."""
        known = self.calendar
        if known is None:
            return now_s
        now = round(now_s * NS)
        at = known.next_online(now)
        return now_s if at == now else None if at is None else seconds(at)

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

    def simulate_timing(
        self,
        *,
        at_ns: int,
        steps: int,
        batch: int,
        bytes_down: int,
        bytes_up: int,
        flops_per_sample: float | None,
        rng: np.random.Generator,
        width: float = 1.0,
        memory_bytes: float = 0.0,
    ) -> Timing:
        """The phases of one job. `rng` is this job's stream; the same draws are made whatever is switched on. A step
        that trains a share `width` of the model is taken to cost that share of a step. A job that needs more
        `memory_bytes` than the client has is lost ("memory") when it was downloaded.

        Raises ProfileError if the client declares FLOP/s and the model's FLOPs per sample are not known.
        """
        lot, point = rng.random(2).tolist()
        normals = rng.standard_normal(3).tolist()
        noise, known = self.network_jitter, self.calendar if self.availability else None
        down = self.latency_s + bytes_down / self.downlink_bytes_per_s
        up = self.latency_s + bytes_up / self.uplink_bytes_per_s
        compute = self.seconds_per_step(batch, flops_per_sample) * steps * width
        begin = at_ns if known is None else known.next_online(at_ns)
        if begin is None:
            return Timing(at_ns, at_ns, at_ns, at_ns, "offline")
        a = round(down * noise.factor(normals[0]) * NS)
        drift = 1.0 if self.drift.kind == "none" else self.drift.at(self._after(begin, a, known)[0] / NS)
        b = a + round(compute * self.compute_jitter.factor(normals[1]) * drift * NS)
        c = b + round(up * noise.factor(normals[2]) * NS)
        dropped, full = lot < self.dropout_prob, memory_bytes > self.memory_bytes
        if known is None and not dropped and not full:
            return Timing(at_ns, at_ns + a, at_ns + b, at_ns + c)
        share = {"uniform": point, "start": 0.0, "end": 1.0}[self.dropout_point] if dropped else 1.0
        stop = round(share * c)  # work after which nothing more is done
        if full and stop >= a:
            stop, dropped = a, False
        (down_ns, _), (train_ns, _), (end_ns, done) = (self._after(begin, min(w, stop), known) for w in (a, b, c))
        lost = "offline" if not done else "dropout" if dropped else "memory" if full else None
        return Timing(at_ns, down_ns, train_ns, end_ns, lost)

    def _after(self, begin: int, work: int, known: Calendar | None) -> tuple[int, bool]:
        """When `work` ns that start at the reachable `begin` end, and True; or when they are lost, and False."""
        if known is None or self.offline_policy == "finish":
            return begin + work, True
        if self.offline_policy == "abort":
            end = known.until(begin)
            return (begin + work, True) if end is None or begin + work <= end else (end, False)
        at = known.warp(begin, work)
        return (known.ends[-1], False) if at is None else (at, True)

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
        kinds = {f.name: str(f.type) for f in fields(cls)}
        values = dict(given)
        for key, value in values.items():
            if key not in kinds:
                near = difflib.get_close_matches(key, kinds, 1)
                raise ProfileError(f"unknown field {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
            if kinds[key] == "Jitter":
                values[key] = _nested(key, value, Jitter)
            elif kinds[key] == "Drift":
                values[key] = _nested(key, value, Drift)
            elif key == "availability":
                values[key] = _windows(value)
            else:
                values[key] = _scalar(key, value, kinds[key].removesuffix(" | None"))
        return cls(**values)


def _scalar(key: str, value: Any, kind: str) -> Any:
    """A number, text or truth value as the field wants it; a whole float passes for an int. Raises ProfileError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float" and number:
        return float(value)
    if kind == "int" and number and value == value // 1:
        return int(value)
    if (kind == "str" and isinstance(value, str)) or (kind == "bool" and isinstance(value, bool)):
        return value
    wanted = {"float": "a number", "int": "a whole number", "str": "text", "bool": "true or false"}[kind]
    raise ProfileError(f"{key}={value!r} must be {wanted}" + (f" of {UNITS[key]}" if key in UNITS else ""))


def _plain(key: str, value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ProfileError(f"{key}={value!r} is no JSON: {error}") from None


def _nested(key: str, value: Any, kind: type[V]) -> V:
    if isinstance(value, kind):
        return value
    given = _plain(key, value)
    names = [f.name for f in fields(kind)]
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        raise ProfileError(f"{key}={value!r} must have some of the fields {', '.join(names)}")
    kinds = {f.name: str(f.type) for f in fields(kind)}
    # a column of a table gives every row all its members: those a row has not are None
    return kind(**{k: _scalar(f"{key}.{k}", v, kinds[k]) for k, v in given.items() if v is not None})


def _windows(value: Any) -> tuple[tuple[float, float], ...]:
    given = _plain("availability", value)
    try:
        return tuple((float(a), float(b)) for a, b in given)
    except (TypeError, ValueError):
        raise ProfileError(f"availability={value!r} must be a list of [start, end) in seconds") from None


def _check_windows(windows: tuple[tuple[float, float], ...], period: float | None) -> None:
    if period is not None and not 0 < period < math.inf:
        raise ProfileError(f"availability_period_s={period} must be a positive number of seconds")
    if period is not None and not windows:
        raise ProfileError("availability_period_s needs availability intervals in seconds")
    last = 0.0
    for start, end in windows:
        if not (last <= start < end < math.inf and round(start * NS) < round(end * NS)):
            raise ProfileError(
                f"availability [{start}, {end}) s: intervals must be sorted, disjoint, finite and a nanosecond at least"
            )
        if period is not None and end > period:
            raise ProfileError(f"availability [{start}, {end}) s reaches beyond the period of {period} s")
        last = end
