"""A fleet as one self-contained SVG: clients from fastest to slowest, how slow each is, and its upload below."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedhet.profile import Profile
from fedhet.report import figures
from fedhet.report.markup import Html, tag
from fedhet.roster import Clients

DRAWN = 240
"""Bars at most; of more clients, evenly many are picked."""

COLORS = ("#5746e0", "#e8590c", "#0a9488", "#d6296b", "#2376d8", "#a87f00", "#9a32b8", "#2f8f3e")
LEFT, INNER, RIGHT, TOP, PANEL, GAP = 92.0, 852.0, 16.0, 78.0, 130.0, 44.0
STYLE = """
svg{--bg:#fff;--ink:#1d1b2f;--muted:#6d6b84;--line:#e6e4f0;font:12px system-ui,sans-serif;background:var(--bg)}
@media(prefers-color-scheme:dark){svg{--bg:#1b1a29;--ink:#eceaf7;--muted:#9a97b5;--line:#2d2b40}}
text{fill:var(--muted)} .title{font-size:16px;font-weight:600;fill:var(--ink)} line{stroke:var(--line)}
.back{fill:var(--bg)} .end{text-anchor:end}
"""


def slowness(profile: Profile) -> float:
    """What orders clients by speed, larger is slower: seconds per step or sample, or seconds per 10^9 FLOP."""
    if profile.flops_per_s is not None:
        return 1e9 / profile.flops_per_s
    return float(profile.sec_per_step or profile.sec_per_sample or 0.0)


def speed_unit(profile: Profile) -> str:
    """The unit of `slowness` for this client."""
    if profile.flops_per_s is not None:
        return "s/GFLOP"
    return "s/step" if profile.sec_per_step is not None else "s/sample"


def picture(clients: Clients) -> str:
    """The SVG document. Axes are logarithmic, colours are device classes; bars tell their numbers when pointed at."""
    order = sorted(picked(len(clients), DRAWN), key=lambda c: (slowness(clients[c]), c))
    shown = {client: clients[client] for client in order}
    kinds = sorted({p.device_class for p in shown.values()})
    colors = {kind: COLORS[k % len(COLORS)] for k, kind in enumerate(kinds)}
    unit, apart = speed_unit(clients[0]), slowness(shown[order[-1]]) / slowness(shown[order[0]])
    some = f"{len(shown)} of " if len(shown) < len(clients) else ""
    head = f"{some}{len(clients):,} clients, the slowest {apart:.1f} times as slow as the fastest"
    panels = [_panel(TOP, unit, shown, slowness, colors, lambda v: f"{v:.3g}")]
    if any(math.isfinite(p.uplink_bytes_per_s) for p in shown.values()):
        panels.append(_panel(TOP + PANEL + GAP, "upload", shown, lambda p: p.uplink_bytes_per_s, colors, _per_second))
    width, height = LEFT + INNER + RIGHT, TOP + len(panels) * (PANEL + GAP)
    return tag(
        "svg",
        tag("style", Html(STYLE)),
        tag("rect", cls="back", width=width, height=height),
        tag("text", head, cls="title", x=16.0, y=26.0),
        *_legend(colors),
        *(mark for panel in panels for mark in panel),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
    )


def _panel(
    top: float,
    name: str,
    shown: Mapping[int, Profile],
    value: Callable[[Profile], float],
    colors: Mapping[str, str],
    told: Callable[[float], str],
) -> list[Html]:
    """Bars whose foot lies a little below the smallest value; what is unlimited has full height."""
    finite = [v for p in shown.values() if math.isfinite(v := value(p))]
    low, high = math.log10(min(finite)) - 0.2, math.log10(max(finite)) + 0.05
    step = INNER / len(shown)
    foot = top + PANEL
    marks = [tag("text", name, cls="end", x=LEFT - 8, y=top - 8)]
    for mark in _round_values(low, high):
        y = foot - PANEL * (math.log10(mark) - low) / (high - low)
        marks.append(tag("line", x1=LEFT, x2=LEFT + INNER, y1=y, y2=y))
        marks.append(tag("text", told(mark), cls="end", x=LEFT - 8, y=y + 4))
    for at, (client, p) in enumerate(shown.items()):
        v = value(p)
        tall = PANEL * ((math.log10(v) - low) / (high - low) if math.isfinite(v) else 1.0)
        what = f"client {client} ({p.name}): {told(v) if math.isfinite(v) else 'unlimited'}"
        x, fill = LEFT + step * (at + 0.1), colors[p.device_class]
        marks.append(tag("rect", tag("title", what), x=x, y=foot - tall, width=step * 0.8, height=tall, fill=fill))
    return marks


def _round_values(low: float, high: float) -> list[float]:
    """Between two powers of ten: the powers themselves, and 2 and 5 times them where there are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 2 else (1,)
    return [m * 10.0**k for k in powers for m in steps if low <= math.log10(m * 10.0**k) <= high]


def _legend(colors: Mapping[str, str]) -> list[Html]:
    marks, x = [], 16.0
    for kind, fill in colors.items():
        if kind:
            marks.append(tag("circle", cx=x + 5, cy=42.0, r=5.0, fill=fill))
            marks.append(tag("text", kind, x=x + 15, y=46.0))
            x += 34 + 7.0 * len(kind)
    return marks


def picked(clients: int, most: int) -> Sequence[int]:
    """All clients, or `most` of them at even distances, the first and the last included."""
    return [int(c) for c in np.unique(np.linspace(0, clients - 1, min(clients, most)).round())]


def rate(value: float) -> str:
    """Bytes per second for people, without the "per second"."""
    return figures.size(value) if math.isfinite(value) else "unlimited"


def _per_second(value: float) -> str:
    return f"{rate(value)}/s"
