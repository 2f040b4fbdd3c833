"""The table and the bars of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from fedhet.report import number_format
from fedhet.report.aggregate_runs import Summary
from fedhet.report.html import Html, tag, xy
from fedhet.report.number_format import Scale
from fedhet.report.terminal import ratio, spread

HEADS = (
    *("strategy", "reached", "time to target", "ratio", "accuracy", "worst tenth"),
    *("up", "down", "tasks", "accepted", "late", "rejected", "failed"),
)
LEFT, RIGHT, PITCH, TOP = 250.0, 960.0, 34.0, 6.0


def ranking(table: Sequence[Summary]) -> Html:
    """A table with one row per strategy; the best time and the best accuracy are highlighted."""
    most = max((row["accuracy_mean"] for row in table if row["accuracy_mean"] is not None), default=None)
    body = []
    for row in table:
        fastest = "best" if row["fastest"] else None
        finest = "best" if most is not None and row["accuracy_mean"] == most else None
        worst = spread(row["worst_decile_accuracy_mean"], row["worst_decile_accuracy_sd"], "share")
        cells = [
            tag("td", f"{row['reached']} of {row['runs']}"),
            tag("td", spread(row["seconds_mean"], row["seconds_sd"], "time"), cls=fastest),
            tag("td", ratio(row), cls=fastest),
            tag("td", spread(row["accuracy_mean"], row["accuracy_sd"], "share"), cls=finest),
            tag("td", worst),
        ]
        cells += [tag("td", spread(row[f"{key}_mean"], None, "bytes")) for key in ("bytes_up", "bytes_down")]
        counts = ("client_tasks", "accepted", "late", "rejected", "failed")
        cells += [tag("td", spread(row[f"{key}_mean"], None, "count")) for key in counts]
        body.append(tag("tr", tag("th", row["strategy"], scope="row"), *cells))
    head = tag("tr", *(tag("th", name, scope="col") for name in HEADS))
    return tag("table", tag("thead", head), tag("tbody", *body), cls="strategies")


def times(table: Sequence[Summary], colors: dict[str, tuple[str, bool]]) -> Html:
    """A bar per strategy with a whisker of one standard deviation, or a text for a strategy without a time."""
    ends = [row["seconds_mean"] + (row["seconds_sd"] or 0.0) for row in table if row["seconds_mean"] is not None]
    across, bottom = Scale(0.0, max(ends, default=0.0), LEFT, RIGHT), TOP + PITCH * len(table)
    step = number_format.time_step(across.span, 8)
    parts: list[Html] = []
    for at in number_format.ticks(0.0, across.high, step) if ends else []:
        x, text = across(at), number_format.time_label(at, step, across.high)
        parts.append(tag("line", cls="grid", x1=x, x2=x, y1=TOP, y2=bottom))
        parts.append(tag("text", text, x=x, y=bottom + 18, text_anchor="middle"))
    parts += [_row(row, across, TOP + PITCH * k, colors[row["strategy"]][0]) for k, row in enumerate(table)]
    box = f"0 0 1100 {xy(bottom + 26)}"
    return tag("svg", *parts, viewBox=box, cls="chart bars times", role="img", aria_label="Time to target")


def _row(row: Summary, across: Scale, y: float, color: str) -> Html:
    middle, sd, name = row["seconds_mean"], row["seconds_sd"] or 0.0, row["strategy"]
    line = y + PITCH / 2 + 4
    label = tag("text", name if len(name) <= 36 else name[:35] + "…", x=LEFT - 10, y=line, text_anchor="end")
    reached = f"reached in {row['reached']} of {row['runs']} runs"
    if middle is None:
        return tag("g", label, tag("text", reached, x=LEFT + 8, y=line))
    title = tag("title", f"{name}\n{spread(middle, row['seconds_sd'], 'time')}\n{reached}")
    bar = tag("rect", x=LEFT, y=y + 7, width=max(1.0, across(middle) - LEFT), height=PITCH - 14, rx=4, cls="span")
    low, high = across(max(0.0, middle - sd)), across(middle + sd)
    whisker = tag("path", cls="whisker", d=f"M{xy(low)} {xy(y + PITCH / 2)}H{xy(high)}") if sd else None
    value = tag("text", f"{number_format.seconds(middle)} · {ratio(row)}", x=high + 8, y=line, cls="value")
    return tag("g", title, label, bar, whisker, value, cls=f"row {color}")
