"""Several runs as one page: curves with their spread over seeds, times to the target, and a table of ratios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedhet.report import number_format
from fedhet.report.aggregate_runs import Summary, common_target, comparison_rows, label
from fedhet.report.comparison_table import ranking, times
from fedhet.report.html import Html, tag
from fedhet.report.line_chart import Axis, legend, line_chart
from fedhet.report.page_layout import card, page, tile
from fedhet.report.run_groups import curves, read
from fedhet.report.run_labels import without_effect
from fedhet.report.run_reader import Row
from fedhet.report.terminal import spread

COLORS = ("s0", "s1", "s2", "s4", "s6", "s5", "s7")
"""Style classes of the strategies, in order, then again with dashed lines. s3 is used for the target."""


def write_comparison(
    run_dirs: Sequence[Path], out: Path, *, target: float | None = None, reference: str | None = None
) -> Path:
    """Write a page that compares finished runs; returns `out`.

    Runs of one strategy are averaged over seeds. If their configurations differ in more than the seed, each
    configuration is a row of its own, named by the differences. See `comparison_rows` for `target` and `reference`.
    Raises ReportError; then nothing is written."""
    rows = read([Path(folder) for folder in run_dirs])
    target = common_target(rows) if target is None else target
    table = comparison_rows([row.data for row in rows], target, reference)
    colors = {row["strategy"]: (COLORS[k % 7], k >= 7) for k, row in enumerate(table)}
    bars = "Mean of the runs that reached it; the whisker is one standard deviation to each side."
    sections = [
        _head(rows, target),
        _tiles(table, target),
        _accuracy(rows, colors, target),
        card("Strategies", _explain(table, target), tag("div", ranking(table), cls="scroll")),
        card("Time to target", bars, times(table, colors)),
        _costs(rows, colors, target),
    ]
    out = Path(out)
    out.write_text(page("Comparison", *sections), encoding="utf-8")
    return out


def _head(rows: Sequence[Row], target: float) -> Html:
    seeds = len({str(row.data.get("seed")) for row in rows})
    chips = (
        number_format.plural(len(rows), "run"),
        number_format.plural(seeds, "seed"),
        f"target {number_format.level(target)}",
    )
    words = tag("p", *(tag("span", chip) for chip in chips), cls="chips")
    told = dict.fromkeys(f"Notice, {label(row)}: {notice}" for row in rows for notice in row.texts("notices"))
    notices = [tag("p", text) for text in (*told, *without_effect(rows))]
    return tag("header", tag("p", "fedhet", cls="brand"), tag("h1", "Comparison"), words, *notices)


def _tiles(table: Sequence[Summary], target: float) -> Html:
    """A tile for the best strategy by each measure; none for a measure without values."""
    tiles = []
    for name, key, kind, sign, color in (
        (f"fastest to {number_format.level(target)}", "seconds", "time", -1, "s3"),
        ("most accurate at the end", "accuracy", "share", 1, "s0"),
        ("best worst tenth of clients", "worst_decile_accuracy", "share", 1, "s2"),
    ):
        have = [row for row in table if row[f"{key}_mean"] is not None]
        if have:
            best = max(have, key=lambda row: sign * row[f"{key}_mean"])
            tiles.append(tile(name, best["strategy"], spread(best[f"{key}_mean"], best[f"{key}_sd"], kind), color))
    return tag("div", *tiles, cls="tiles three")


def _accuracy(rows: Sequence[Row], colors: dict[str, tuple[str, bool]], target: float) -> Html:
    shown, goal = curves(rows, colors, "t"), (target, f"target {number_format.level(target)}")
    x, y, name = Axis("time", "time on the run's clock"), Axis("share"), "Accuracy over time"
    chart = line_chart(shown, x, y, width=1100, height=360, label=name, target=goal)
    words = "Mean over the runs of a strategy; the band is one standard deviation to each side."
    return card("Accuracy", words, legend(shown), chart)


def _costs(rows: Sequence[Row], colors: dict[str, tuple[str, bool]], target: float) -> Html:
    cards = []
    for title, words, key, x in (
        ("Per client task", "Accuracy against tasks that ended.", "client_tasks", Axis("number", "client tasks")),
        ("Per byte sent up", "Accuracy against what clients sent.", "bytes_up", Axis("bytes", "bytes up")),
    ):
        shown, goal = curves(rows, colors, key), (target, f"target {number_format.level(target)}")
        chart = line_chart(shown, x, Axis("share"), width=530, height=270, label=title, target=goal)
        cards.append(card(title, words, chart))
    return tag("div", *cards, cls="pair")


def _explain(table: Sequence[Summary], target: float) -> str:
    base = next((row["strategy"] for row in table if row["reference"]), None)
    none = f"No strategy has a time to {number_format.level(target)}."
    words = none if base is None else f"Ratios are to {base}."
    return f"{words} A strategy that reached the target in fewer than half of its runs has no time."
