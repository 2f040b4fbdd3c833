"""The staleness chart: a histogram of the staleness of combined updates, with the mean scale by staleness."""

from __future__ import annotations

from dataclasses import dataclass

from fedhet.report import number_format
from fedhet.report.event_records import Discount
from fedhet.report.event_replay import Story
from fedhet.report.html import Html, tag, xy
from fedhet.report.number_format import Scale

BINS = 32
WIDTH, HEIGHT = 530.0, 330.0


@dataclass(frozen=True)
class Bin:
    """Updates whose staleness is in [low, high]."""

    low: int
    high: int
    discount: Discount

    @property
    def label(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    @property
    def mean(self) -> float:
        return self.discount.total / self.discount.updates


def bins(discounts: dict[int, Discount], most: int = BINS) -> list[Bin]:
    """Stalenesses in at most `most` equal bins; the empty ones are left out."""
    if not discounts:
        return []
    first, last = min(0, *discounts), max(discounts)
    width = -(-(last - first + 1) // most)
    found: dict[int, Discount] = {}
    for staleness, seen in discounts.items():
        into = found.setdefault((staleness - first) // width, Discount())
        into.updates += seen.updates
        into.total += seen.total
        into.low, into.high = min(into.low, seen.low), max(into.high, seen.high)
    return [Bin(first + k * width, first + (k + 1) * width - 1, found[k]) for k in sorted(found)]


def histogram(story: Story) -> Html:
    """Bars: updates per staleness (left axis). Line: the mean scale they were given (right axis)."""
    shown = bins(story.discounts)
    if not shown:
        return tag("p", "No update was combined.", cls="empty")
    left, right, top, bottom = 52.0, WIDTH - 44, 16.0, HEIGHT - 46
    width = shown[0].high - shown[0].low + 1
    low, high = min(0, shown[0].low), max(shown[-1].high, shown[0].low + 4 * width - 1)
    across = Scale(low - 0.5, high + 0.5, left, right)
    most = max(b.discount.updates for b in shown)
    up = Scale(0.0, max(1.0, float(most)), bottom, top).nice(4)
    worth = Scale(min(0.0, *(b.mean for b in shown)), max(1.0, *(b.mean for b in shown)), bottom, top)
    body: list[Html] = []
    step = max(1.0, number_format.nice_step(up.span, 4))
    for value in number_format.ticks(0.0, up.high, step):
        body.append(tag("line", cls="grid", x1=left, x2=right, y1=up(value), y2=up(value)))
        body.append(tag("text", number_format.count(value), x=left - 8, y=up(value) + 4, text_anchor="end"))
    for value in (worth.low, (worth.low + worth.high) / 2, worth.high):
        body.append(tag("text", number_format.figure(value, 2), cls="scale", x=right + 8, y=worth(value) + 4))
    gap = min(6.0, (across(1) - across(0)) * width * 0.16)
    body += [_bar(b, across, up, bottom, gap) for b in shown]
    body += _labels(shown, across, bottom)
    spots = [(across((b.low + b.high) / 2), worth(b.mean)) for b in shown]
    body.append(tag("path", cls="scale", d="M" + "L".join(f"{xy(a)} {xy(b)}" for a, b in spots)))
    body += [tag("circle", cls="scale", cx=a, cy=b, r=3) for a, b in spots]
    body.append(
        tag("text", "staleness (versions)", cls="axis", x=(left + right) / 2, y=HEIGHT - 6, text_anchor="middle")
    )
    return tag(
        "svg",
        *body,
        viewBox=f"0 0 {xy(WIDTH)} {xy(HEIGHT)}",
        cls="chart bars",
        role="img",
        aria_label="Staleness of updates",
    )


def _bar(b: Bin, across: Scale, up: Scale, bottom: float, gap: float) -> Html:
    x0, x1, y = across(b.low - 0.5) + gap, across(b.high + 0.5) - gap, up(b.discount.updates)
    least, most = number_format.figure(b.discount.low), number_format.figure(b.discount.high)
    counted = number_format.plural(b.discount.updates, "update")
    title = f"staleness {b.label}: {counted}\nmean scale {number_format.figure(b.mean)}"
    title += f" ({least} to {most})" if least != most else ""
    hover = tag("rect", cls="hover", x=x0 - gap, y=14, width=x1 - x0 + 2 * gap, height=bottom - 14)
    high = max(bottom - y, 1.0)
    bar = tag("rect", cls="bar", x=x0, y=bottom - high, width=x1 - x0, height=high, rx=min(3.0, high / 2))
    return tag("g", tag("title", title), hover, bar)


def _labels(shown: list[Bin], across: Scale, bottom: float) -> list[Html]:
    """Labels under the bars, as many as fit."""
    parts, free = [], -1e9
    for b in shown:
        x, half = across((b.low + b.high) / 2), 3.6 * len(b.label)
        if x - half >= free:
            parts.append(tag("text", b.label, x=x, y=bottom + 19, text_anchor="middle"))
            free = x + half + 6
    return parts
