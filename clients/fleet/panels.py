"""The panels of a fleet's picture: bars, a scatter plot, and bars of the time online."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedhet.population.profile import Profile
from fedhet.report import number_format
from fedhet.report.html import Html, tag

Told = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Box:
    """The rectangle of a panel, in pixels, without the labels of its axes."""

    left: float
    top: float
    width: float
    height: float

    @property
    def foot(self) -> float:
        return self.top + self.height

    @property
    def right(self) -> float:
        return self.left + self.width


@dataclass(frozen=True, slots=True)
class Log:
    """A logarithmic axis from `low` to `high` over pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, below: float, above: float) -> Log:
        """With room below and above, in powers of ten."""
        return cls(min(values) / 10**below, max(values) * 10**above, start, end)

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def marks(self, most: int) -> list[float]:
        """Powers of ten, with 2 and 5 times them where there is room, fewer of them where there is none."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = [[m * 10.0**k for k in powers for m in steps] for steps in ((1, 2, 5), (1, 3), (1,))]
        inside = [[v for v in values if self.low <= v <= self.high] for values in every]
        chosen = next((values for values in inside if len(values) <= most), inside[-1])
        return chosen[:: math.ceil(len(chosen) / most)] if chosen else []


def bars(
    box: Box,
    name: str,
    shown: Mapping[int, Profile],
    value: Callable[[Profile], float],
    told: Told,
    colors: Mapping[str, str],
) -> list[Html]:
    """One bar per client, in the order given; the axis starts a little below the smallest."""
    axis = Log.around([value(p) for p in shown.values()], box.foot, box.top, 0.2, 0.05)
    marks = [_name(box, name), *_rows(box, axis, told)]
    step = min(96.0, box.width / len(shown))
    for at, (client, p) in enumerate(shown.items()):
        top = axis(value(p))
        said = tag("title", f"{_who(client, p)}: {told(value(p))}")
        x, fill = box.left + step * (at + 0.1), colors[p.device_class]
        marks.append(tag("rect", said, x=x, y=top, width=step * 0.8, height=box.foot - top, fill=fill))
    return marks


def scatter(
    box: Box,
    names: tuple[str, str],
    shown: Mapping[int, Profile],
    across: Callable[[Profile], float],
    up: Callable[[Profile], float],
    told: tuple[Told, Told],
    colors: Mapping[str, str],
) -> list[Html]:
    """One dot per client. Unlimited bandwidth is drawn on the upper edge, with a label."""
    axis_x = Log.around([across(p) for p in shown.values()], box.left, box.right, 0.1, 0.1)
    axis_y = Log.around([v for p in shown.values() if math.isfinite(v := up(p))], box.foot, box.top, 0.1, 0.2)
    marks = [_name(box, names[1]), *_rows(box, axis_y, told[1])]
    for value in axis_x.marks(6):
        x = axis_x(value)
        marks.append(tag("line", x1=x, x2=x, y1=box.top, y2=box.foot))
        marks.append(tag("text", told[0](value), cls="mid", x=x, y=box.foot + 16))
    marks.append(tag("text", names[0], cls="end", x=box.right, y=box.foot + 32))
    for client, p in shown.items():
        said = f"{_who(client, p)}: {told[0](across(p))} {names[0]}, {names[1]} {told[1](up(p))}"
        y = axis_y(up(p)) if math.isfinite(up(p)) else box.top
        fill = colors[p.device_class]
        marks.append(tag("circle", tag("title", said), cls="dot", cx=axis_x(across(p)), cy=y, r=5.0, fill=fill))
    return marks


def online(box: Box, name: str, shown: Mapping[int, Profile], colors: Mapping[str, str]) -> list[Html]:
    """One row per client: its online windows over its own period, or until the last one if they do not repeat."""
    marks = [_name(box, name)]
    step = min(24.0, box.height / len(shown))
    thick = step * 0.7
    for at, (client, p) in enumerate(shown.items()):
        top, period = box.top + step * at, p.availability_period_s
        span = period or p.availability[-1][1]
        marks.append(tag("rect", cls="off", x=box.left, y=top, width=box.width, height=thick))
        for start, end in p.availability:
            said = f"{_who(client, p)}: online from {number_format.seconds(start)} to {number_format.seconds(end)}"
            said += f" of every {number_format.seconds(period)}" if period else ", once"
            x, wide = box.left + box.width * start / span, box.width * (end - start) / span
            fill = colors[p.device_class]
            marks.append(tag("rect", tag("title", said), x=x, y=top, width=wide, height=thick, fill=fill))
        if step >= 12:
            middle = top + thick / 2 + 4
            marks.append(tag("text", _short(p.name), cls="end", x=box.left - 8, y=middle))
            tells = number_format.seconds(span) if period else f"{number_format.seconds(span)}, once"
            marks.append(tag("text", tells, x=box.right + 8, y=middle))
    return marks


def _rows(box: Box, axis: Log, told: Told) -> list[Html]:
    marks = []
    for value in axis.marks(6):
        y = axis(value)
        marks.append(tag("line", x1=box.left, x2=box.right, y1=y, y2=y))
        marks.append(tag("text", told(value), cls="end", x=box.left - 8, y=y + 4))
    return marks


def _name(box: Box, name: str) -> Html:
    return tag("text", name, cls="name", x=box.left, y=box.top - 12)


def _who(client: int, profile: Profile) -> str:
    return f"client {client} ({profile.name})"


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
