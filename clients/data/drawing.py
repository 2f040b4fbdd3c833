"""A partition as one self-contained SVG: above, each client's samples stacked by class; below, a dot for each client
and class whose area is the number of samples. Both share the clients along the horizontal axis."""

from __future__ import annotations

import colorsys

import numpy as np

from clients.data.partition import Partition
from fedhet.report.html import Html, tag

PALETTE = (
    "#5746e0", "#e8590c", "#0a9488", "#d6296b", "#2376d8", "#a87f00", "#9a32b8", "#2f8f3e", "#1f9cb8", "#77748f",
)  # fmt: skip
CELLS = 2400
"""Largest number of clients times classes in a picture; of more clients an evenly spaced subset is shown."""

LEFT, RIGHT, TOP, BARS, GAP, INNER = 76.0, 16.0, 66.0, 150.0, 18.0, 868.0
STYLE = """
svg{--bg:#fff;--ink:#1d1b2f;--muted:#6d6b84;--line:#e6e4f0;font:12px system-ui,sans-serif;background:var(--bg)}
@media(prefers-color-scheme:dark){svg{--bg:#1b1a29;--ink:#eceaf7;--muted:#9a97b5;--line:#2d2b40}}
text{fill:var(--muted)} .title{font-size:16px;font-weight:600;fill:var(--ink)} line{stroke:var(--line)}
.back{fill:var(--bg)} .end{text-anchor:end} .mid{text-anchor:middle}
"""


def color(label: int, classes: int) -> str:
    """A class's colour, #rrggbb: from a fixed palette up to ten classes, around the colour wheel for more."""
    if classes <= len(PALETTE):
        return PALETTE[label]
    # neighbours on the axis are far apart on the wheel, and alternate in lightness
    red, green, blue = colorsys.hls_to_rgb(label * 0.618034 % 1.0, (0.42, 0.54)[label % 2], 0.6)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def picked(clients: int, most: int) -> list[int]:
    """All clients, or `most` of them at even distances, the first and the last included."""
    return [int(c) for c in np.unique(np.linspace(0, clients - 1, min(clients, most)).round())]


def picture(partition: Partition) -> str:
    """The SVG document. Data without labels get plain bars. Every mark has a tooltip with its numbers."""
    data = partition.dataset
    classes = data.classes if data.labelled else 1
    shown = picked(partition.clients, max(20, CELLS // classes))
    histogram = partition.labels(shown) if data.labelled else partition.counts[shown][:, None]
    row = min(22.0, max(6.0, 320.0 / classes))
    below = GAP + classes * row if data.labelled else 0.0
    foot = TOP + BARS + below
    width, height = LEFT + INNER + RIGHT, foot + 44
    head = f"{data.name}: {partition.counts.sum():,} samples at {partition.clients:,} clients"
    some = f"{len(shown)} of {partition.clients:,} clients, " if len(shown) < partition.clients else ""
    note = f"{some}samples stacked by class; below, the area of a dot is a client's samples of a class"
    step = INNER / len(shown)
    parts = [
        tag("style", Html(STYLE)),
        tag("rect", cls="back", width=width, height=height),
        tag("text", head, cls="title", x=16.0, y=26.0),
        tag("text", note if data.labelled else f"{some}samples of each client", x=16.0, y=46.0),
        *_scale(int(histogram.sum(1).max())),
        *(mark for at, client in enumerate(shown) for mark in _bar(at * step, step, client, histogram, at)),
        *(_dots(shown, histogram, step, row) if data.labelled else []),
        *_clients(shown, step, foot + 16),
        tag("text", "client", cls="mid", x=LEFT + INNER / 2, y=foot + 34),
    ]
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=box, width=width, height=height)


def _scale(largest: int) -> list[Html]:
    """Grid lines at round numbers of samples."""
    step = 10.0 ** np.floor(np.log10(max(largest, 1)))
    step = float(next(s for s in (step / 5, step / 2, step, step * 2) if largest / s <= 5))
    marks = []
    for value in np.arange(0, largest + 1, max(step, 1.0)):
        y = TOP + BARS * (1 - value / largest)
        marks.append(tag("line", x1=LEFT, x2=LEFT + INNER, y1=y, y2=y))
        marks.append(tag("text", f"{value:,.0f}", cls="end", x=LEFT - 8, y=y + 4))
    return marks


def _bar(x: float, step: float, client: int, histogram: np.ndarray, at: int) -> list[Html]:
    counts, largest = histogram[at], histogram.sum(1).max()
    foot, marks = TOP + BARS, []
    for label, count in enumerate(counts):
        if count:
            tall = BARS * float(count) / float(largest)
            foot -= tall
            what = f"client {client}: {counts.sum():,} samples"
            told = tag("title", what + (f", {count:,} of class {label}" if len(counts) > 1 else ""))
            fill = color(label, len(counts))
            marks.append(tag("rect", told, x=LEFT + x + step * 0.1, y=foot, width=step * 0.8, height=tall, fill=fill))
    return marks


def _dots(shown: list[int], histogram: np.ndarray, step: float, row: float) -> list[Html]:
    marks, classes = [], histogram.shape[1]
    room, most = min(row, step) / 2 * 0.94, float(histogram.max())
    top = TOP + BARS + GAP
    every = max(1, int(np.ceil(16 / row)))
    for label in range(classes):
        y = top + (label + 0.5) * row
        marks.append(tag("line", x1=LEFT, x2=LEFT + INNER, y1=y, y2=y))
        if label % every == 0:
            marks.append(tag("text", f"class {label}", cls="end", x=LEFT - 8, y=y + 4))
        for at, client in enumerate(shown):
            count = int(histogram[at, label])
            if count:
                told = tag("title", f"client {client}: {count:,} samples of class {label}")
                radius = max(0.6, room * (count / most) ** 0.5)
                x = LEFT + (at + 0.5) * step
                marks.append(tag("circle", told, cx=x, cy=y, r=radius, fill=color(label, classes)))
    return marks


def _clients(shown: list[int], step: float, y: float) -> list[Html]:
    """Client numbers along the axis, as many as there is room for."""
    every = max(1, round((8.0 * len(str(shown[-1])) + 8) / step + 0.49))
    return [
        tag("text", str(client), cls="mid", x=LEFT + (at + 0.5) * step, y=y)
        for at, client in enumerate(shown)
        if at % every == 0
    ]
