"""Reading of runs for a comparison, and the mean of curves over the runs of one label."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from fedhet.report.aggregate_runs import deviation, label, mean
from fedhet.report.errors import ReportError
from fedhet.report.line_chart import Curve, Points
from fedhet.report.run_labels import labels, method_name
from fedhet.report.run_reader import Row, document, lines

MEAN_CURVE_POINTS = 160
"""Points of a mean curve."""


def read(folders: Sequence[Path]) -> list[Row]:
    """result.json of every run, with its evaluations under `metrics` and its name under `label`."""
    if not folders:
        raise ReportError("there is nothing to compare: no run was given")
    rows = []
    for folder in folders:
        result = document(folder / "result.json")
        metrics = [row.data for row in lines(folder / "metrics.jsonl") if row.time("t") >= 0]
        rows.append(Row(result.path, None, {**result.data, "path": str(result.path), "metrics": metrics}))
    names = labels(folders, [method_name(row) for row in rows])
    return [Row(row.path, None, {**row.data, "label": name}) for row, name in zip(rows, names, strict=True)]


def curves(rows: Sequence[Row], colors: dict[str, tuple[str, bool]], key: str) -> list[Curve]:
    curves = []
    for name, (color, dashed) in colors.items():
        runs = [_points(row, key) for row in rows if label(row) == name]
        points, band = average([r for r in runs if r])
        curves.append(Curve(name, points, color, dashed, band))
    return curves


def _points(row: Row, key: str) -> list[tuple[float, float]]:
    rows = (Row(row.path.with_name("metrics.jsonl"), None, m) for m in row.data["metrics"])
    pairs = ((m.optional(key), m.optional("accuracy")) for m in rows)
    return sorted((x, y) for x, y in pairs if x is not None and y is not None)


def average(runs: Sequence[Points]) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """Mean and band of one standard deviation of several curves, over the interval that all of them cover.

    Between evaluations a run has the value of the last one.
    """
    if not runs:
        return [], []
    if len(runs) == 1:
        return list(runs[0]), []
    start, end = max(r[0][0] for r in runs), min(r[-1][0] for r in runs)
    if start > end:
        return [], []
    xs = sorted({start + (end - start) * k / MEAN_CURVE_POINTS for k in range(MEAN_CURVE_POINTS + 1)})
    columns = [[x for x, _ in r] for r in runs]
    points, band = [], []
    for x in xs:
        ys = [r[max(0, bisect_right(c, x + 1e-12 * abs(x)) - 1)][1] for r, c in zip(runs, columns, strict=True)]
        middle, sd = mean(ys), deviation(ys)
        assert middle is not None and sd is not None
        points.append((x, middle))
        band.append((x, max(0.0, middle - sd), min(1.0, middle + sd)))
    return points, band
