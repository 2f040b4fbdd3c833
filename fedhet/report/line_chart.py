"""Line charts as inline SVG: curves over time or any other quantity, bands of spread, a target to reach.

A chart is complete without a script; the values of its curves are in data attributes, which a crosshair reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedhet.report import number_format
from fedhet.report.html import Html, tag, xy
from fedhet.report.number_format import Scale

Points = Sequence[tuple[float, float]]

MAX_POINTS = 600
"""Points per curve, at most; longer curves are thinned so that peaks remain."""


@dataclass(frozen=True)
class Curve:
    """One line. `color` is a class of the style sheet; `band` is (x, low, high) around it."""

    name: str
    points: Points
    color: str
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Axis:
    """An axis of kind time, share, bytes or number. `floor`: the axis starts at this value or below."""

    kind: str
    label: str = ""
    floor: float | None = None

    def step(self, span: float, wanted: int) -> float:
        return number_format.time_step(span, wanted) if self.kind == "time" else number_format.nice_step(span, wanted)

    def tick(self, value: float, step: float, high: float) -> str:
        if self.kind == "time":
            return number_format.time_label(value, step, high)
        if self.kind == "share":
            return number_format.percent(value, max(0, -math.floor(math.log10(step * 100) + 1e-9)))
        return self.read(value)

    def read(self, value: float) -> str:
        """A value in full."""
        kinds: dict[str, Callable[[float], str]] = {
            "time": number_format.seconds,
            "share": lambda v: number_format.percent(v, 2),
            "bytes": number_format.size,
            "number": number_format.figure,
        }
        return kinds[self.kind](value)


def thin(points: Points, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points: of every stretch the first, the lowest, the highest and the last."""
    if len(points) <= most:
        return list(points)
    buckets = max(1, most // 4)
    kept: list[tuple[float, float]] = []
    for k in range(buckets):
        low, high = k * len(points) // buckets, (k + 1) * len(points) // buckets
        span = range(low, high)
        chosen = {low, high - 1, min(span, key=lambda i: points[i][1]), max(span, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(chosen)]
    return kept


def legend(curves: Sequence[Curve]) -> Html:
    """Names and colours."""
    keys = [tag("span", tag("i", cls=f"key {c.color}{' dashed' if c.dashed else ''}"), c.name) for c in curves]
    return tag("div", *keys, cls="legend")


def line_chart(
    curves: Sequence[Curve], x: Axis, y: Axis, *, width: float, height: float, label: str,
    target: tuple[float, str] | None = None, reached: float | None = None, end: float | None = None,
) -> Html:  # fmt: skip
    """Curves in one frame. `target` is a level and its caption, `reached` the x where it was first met, `end` the least
    x the axis must show. With no finite point at all, a sentence says so."""
    shown = [_finite(c) for c in curves]
    values = [v for c in shown for v in [p[1] for p in c.points] + [b for _, *lh in c.band for b in lh]]
    if not any(c.points for c in shown):
        return tag("p", "No figures were recorded.", cls="empty")
    levels = values + ([target[0]] if target else []) + ([y.floor] if y.floor is not None else [])
    times = [p[0] for c in shown for p in c.points] + ([end] if end is not None else [])
    left, right, top, bottom = 58.0, width - 16, 14.0, height - (44 if x.label else 30)
    across = Scale(min(0.0, *times), max(times), left, right)
    up = Scale(min(levels), max(levels), bottom, top).nice(5)
    body: list[Html] = [_grid(across, up, x, y, left, right, top, bottom)]
    if target:
        level = up(target[0])
        body.append(tag("line", cls="target", x1=left, x2=right, y1=level, y2=level))
        body.append(tag("text", target[1], cls="target", x=left + 8, y=level - 6))
        if reached is not None and across.low <= reached <= across.high:
            body.append(tag("line", cls="target", x1=across(reached), x2=across(reached), y1=level, y2=bottom))
            body.append(tag("circle", cls="target", cx=across(reached), cy=level, r=4.5))
    body += [_band(c, across, up) for c in shown if c.band]
    body += [_curve(c, across, up, x, y) for c in shown if c.points]
    body.append(tag("line", cls="cross", x1=0, x2=0, y1=top, y2=bottom, visibility="hidden"))
    names = {"viewBox": f"0 0 {xy(width)} {xy(height)}", "role": "img", "aria_label": label}
    return tag("svg", *body, cls="chart", **names)


def _finite(curve: Curve) -> Curve:
    points = [p for p in curve.points if math.isfinite(p[0]) and math.isfinite(p[1])]
    band = [b for b in curve.band if all(map(math.isfinite, b))]
    return Curve(curve.name, thin(points), curve.color, curve.dashed, band)


def _grid(across: Scale, up: Scale, x: Axis, y: Axis, left: float, right: float, top: float, bottom: float) -> Html:
    parts: list[Html] = []
    step = y.step(up.span, 5)
    for value in number_format.ticks(up.low, up.high, step):
        parts.append(tag("line", cls="grid", x1=left, x2=right, y1=up(value), y2=up(value)))
        parts.append(tag("text", y.tick(value, step, up.high), x=left - 8, y=up(value) + 4, text_anchor="end"))
    step = x.step(across.span, max(2, int((right - left) / 90)))
    for value in number_format.ticks(across.low, across.high, step):
        parts.append(tag("line", cls="tick", x1=across(value), x2=across(value), y1=bottom, y2=bottom + 5))
        parts.append(
            tag("text", x.tick(value, step, across.high), x=across(value), y=bottom + 19, text_anchor="middle")
        )
    if x.label:
        parts.append(tag("text", x.label, cls="axis", x=(left + right) / 2, y=bottom + 38, text_anchor="middle"))
    return tag("g", *parts)


def _band(curve: Curve, across: Scale, up: Scale) -> Html:
    upper = [f"{xy(across(x))} {xy(up(high))}" for x, _, high in curve.band]
    lower = [f"{xy(across(x))} {xy(up(low))}" for x, low, _ in reversed(curve.band)]
    return tag("path", cls=f"band {curve.color}", d=f"M{'L'.join(upper + lower)}Z")


def _curve(curve: Curve, across: Scale, up: Scale, x: Axis, y: Axis) -> Html:
    style = f"{curve.color}{' dashed' if curve.dashed else ''}"
    spots = [(across(a), up(b)) for a, b in curve.points]
    line = "L".join(f"{xy(a)} {xy(b)}" for a, b in spots)
    dots = [tag("circle", cx=a, cy=b, r=2.6) for a, b in spots] if len(spots) <= 40 else []
    readings = "|".join(f"{x.read(a)}: {y.read(b)}" for a, b in curve.points)
    return tag(
        "g", tag("path", cls="line", d=f"M{line}"), *dots, cls=f"curve {style}", data_name=curve.name,
        data_x=" ".join(xy(a) for a, _ in spots), data_y=" ".join(xy(b) for _, b in spots), data_read=readings,
    )  # fmt: skip
