"""A fleet as one self-contained SVG: the clients' speeds, speed against upload bandwidth, and times online."""

from __future__ import annotations

import math
from collections.abc import Mapping

from clients.fleet.panels import Box, bars, online, scatter
from clients.fleet.speed import away, per_second, picked, slowness, slownesses, speed_unit
from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.report import number_format
from fedhet.report.html import Html, tag

DRAWN, ROWS = 240, 16
"""Largest number of clients in a picture, and of rows of online windows; of more an evenly spaced subset is shown."""

COLORS = ("#5746e0", "#e8590c", "#0a9488", "#d6296b", "#2376d8", "#a87f00", "#9a32b8", "#2f8f3e")
WIDTH, LEFT, INNER, TOP, GAP = 960.0, 84.0, 856.0, 92.0, 52.0
BARS, LOWER = 150.0, 230.0
STYLE = """
svg{--bg:#fff;--ink:#1d1b2f;--muted:#6d6b84;--line:#e6e4f0;font:12px system-ui,sans-serif;background:var(--bg)}
@media(prefers-color-scheme:dark){svg{--bg:#1b1a29;--ink:#eceaf7;--muted:#9a97b5;--line:#2d2b40}}
text{fill:var(--muted)} .title{font-size:16px;font-weight:600;fill:var(--ink)} .name{fill:var(--ink)}
line{stroke:var(--line)} .back{fill:var(--bg)} .off{fill:var(--line)} .end{text-anchor:end} .mid{text-anchor:middle}
.dot{fill-opacity:.85;stroke:var(--bg)}
"""


def picture(clients: Clients) -> str:
    """The SVG document. Axes are logarithmic, colours are device classes; marks have tooltips with their numbers."""
    shown = {client: clients[client] for client in picked(len(clients), DRAWN)}
    shown = dict(sorted(shown.items(), key=lambda item: (slowness(item[1]), item[0])))
    units = sorted({speed_unit(p) for p in shown.values()})
    kinds = sorted({p.device_class for p in shown.values()})
    colors = {kind: COLORS[k % len(COLORS)] for k, kind in enumerate(kinds)}
    marks, top = [], TOP
    for unit in units:
        some = {client: p for client, p in shown.items() if speed_unit(p) == unit}
        name = f"{unit}, from the fastest" + (f"; {clients.note}" if clients.note else "")
        marks += bars(Box(LEFT, top, INNER, BARS), name, some, slowness, number_format.figure, colors)
        top += BARS + GAP
    lower = _lower(top, shown, units, colors, away(clients))
    return tag(
        "svg",
        tag("style", Html(STYLE)),
        tag("rect", cls="back", width=WIDTH, height=(height := top + (LOWER + GAP if lower else 0) - 16)),
        tag("text", _head(len(shown), clients), cls="title", x=16.0, y=28.0),
        *_legend(colors),
        *marks,
        *lower,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=WIDTH,
        height=height,
    )


def _head(shown: int, clients: Clients) -> str:
    """The heading, with statistics of all clients."""
    count, slow = len(clients), slownesses(clients)
    head = f"{shown} of {count:,} clients" if shown < count else number_format.plural(count, "client")
    if len(slow) > 1:
        return f"{head}, speeds in {' and '.join(slow)}"
    (values,) = slow.values()
    return f"{head}, the slowest {number_format.figure(values.max() / values.min())} times as slow as the fastest"


def _lower(
    top: float, shown: Mapping[int, Profile], units: list[str], colors: Mapping[str, str], absent: int
) -> list[Html]:
    """Side by side: speed against upload if that is limited, windows if there are some; alone, all of the width."""
    limited = len(units) == 1 and any(math.isfinite(p.uplink_bytes_per_s) for p in shown.values())
    gone = [client for client, p in shown.items() if p.availability]
    left = Box(LEFT, top, 0.42 * INNER if gone else INNER, LOWER)
    marks = []
    if limited:
        named, told = (units[0], "upload"), (number_format.figure, per_second)
        marks += scatter(left, named, shown, slowness, lambda p: p.uplink_bytes_per_s, told, colors)
    if gone:
        start = left.right + 130 if limited else LEFT + 26
        rows = {gone[at]: shown[gone[at]] for at in picked(len(gone), ROWS)}
        of = f"{len(rows)} of the {absent:,}" if len(rows) < absent else f"the {absent:,}"
        box = Box(start, top, WIDTH - 124 - start, LOWER)
        marks += online(box, f"time online of {of} that are not always", rows, colors)
    return marks


def _legend(colors: Mapping[str, str]) -> list[Html]:
    marks, x = [], 16.0
    for kind, fill in colors.items():
        if kind and x < WIDTH - 100:
            marks.append(tag("circle", cx=x + 5, cy=48.0, r=5.0, fill=fill))
            marks.append(tag("text", kind, x=x + 15, y=52.0))
            x += 34 + 7.0 * len(kind)
    return marks
