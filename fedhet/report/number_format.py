"""Formatting of numbers, and scales: the same for pages, axes and the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

NONE = "–"
"""Text for a missing value."""

TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Tick steps of time axes in seconds, from a second to a day."""


def count(value: float | None) -> str:
    """1234567 is "1,234,567"."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.9142 is "91.4%"."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}%"


def level(share: float | None) -> str:
    """A share that was chosen, as it was written: 0.85 is "85%", 0.855 is "85.5%"."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.6g}%"


def figure(value: float | None, digits: int = 3) -> str:
    """A number to three significant digits, without an exponent where one can do without."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(value: float | None) -> str:
    """A duration in its two largest units: "850 ms", "12.3 s", "4 min 05 s", "2 h 07 min", "3 d 4 h"."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 0:
        return "-" + seconds(-value)
    if value == 0:
        return "0 s"
    if value < 0.9995:
        return f"{figure(value * 1000)} ms"
    if value < 119.95:
        return f"{figure(value)} s"
    whole = round(value)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(value / 3600)
    return f"{hours // 24:,} d {hours % 24} h"


def size(value: float | None) -> str:
    """Bytes in decimal units: 1234567 is "1.23 MB"."""
    if value is None or not math.isfinite(value):
        return NONE
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(amount) < 999.5 or unit == "PB":
            return f"{figure(amount)} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")


def plural(n: int, noun: str) -> str:
    """ "1 client", "2 clients"."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def nice_step(span: float, wanted: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that makes at most `wanted` steps of `span`."""
    rough = span / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))


def time_step(span: float, wanted: int) -> float:
    """Like `nice_step`, in seconds, minutes, hours and days."""
    rough = span / max(1, wanted)
    if rough <= 1:
        step = nice_step(span, wanted)
        return step if step < 1 else 1.0
    if rough > TIME_STEPS[-1]:
        return 86400 * max(1.0, nice_step(span / 86400, wanted))
    return float(next(step for step in TIME_STEPS if step >= rough * (1 - 1e-9)))


def ticks(low: float, high: float, step: float) -> list[float]:
    """The multiples of `step` in [low, high]."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def time_label(at: float, step: float, high: float) -> str:
    """A tick on a time axis that ends at `high`: in the unit of the axis, down to the unit of the step."""
    if at == 0:
        return "0"
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    if step < 1 and not math.isclose(step * 10**places, round(step * 10**places)):
        places += 1
    if high < 1:
        return f"{at * 1000:.6g} ms"
    if high <= 180:
        return f"{at:.{places}f} s"
    width = places + 3 if places else 2
    tail = f"{at % 60:0{width}.{places}f}"
    minutes = math.floor(round(at, 6) / 60)
    if high <= 10800:
        return f"{minutes} min" if step % 60 == 0 else f"{minutes}:{tail}"
    if high <= 259200:
        if step % 3600 == 0:
            return f"{minutes // 60} h"
        return f"{minutes // 60}:{minutes % 60:02d}" + ("" if step % 60 == 0 else f":{tail}")
    days, rest = divmod(minutes, 1440)
    if step % 86400 == 0:
        return f"{days} d"
    return f"{days} d {rest // 60}:{rest % 60:02d}" + ("" if step % 60 == 0 else f":{tail}")


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from [low, high] to [start, end]; an empty span is widened, so it never divides by zero."""

    low: float
    high: float
    start: float
    end: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a scale from {self.low} to {self.high} must be finite and not run backward")
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"a scale from {self.low} to {self.high} is too wide")
        largest = max(abs(self.low), abs(self.high))
        if self.high - self.low <= max(1e-12 * largest, 1e-200):
            pad = 0.05 * largest if largest > 1e-200 else 1e-3
            object.__setattr__(self, "low", self.low - (pad if largest > 1e-200 else 0.0))
            object.__setattr__(self, "high", self.high + pad)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def span(self) -> float:
        return self.high - self.low

    def nice(self, wanted: int) -> Scale:
        """The same map with its ends moved out to whole steps."""
        step = nice_step(self.span, wanted)
        low, high = math.floor(self.low / step + 1e-9) * step, math.ceil(self.high / step - 1e-9) * step
        return Scale(low, high, self.start, self.end)
