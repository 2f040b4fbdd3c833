"""Several runs side by side: per strategy the mean and spread over seeds, and how long it took to reach the target.

Time to target is on the run's own clock. A strategy that reached it in fewer than half of its runs has no mean time: a
mean over the successful runs would be biased. The spread is the sample standard deviation (n - 1), None for one run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fedhet.report.errors import ReportError
from fedhet.report.run_labels import method_name
from fedhet.report.run_reader import Row, as_number

Result = Mapping[str, Any]
"""A result.json. Two keys may be added: `label` names its row instead of `strategy`; `metrics` holds the rows of
metrics.jsonl, needed for a target other than the run's own."""

Summary: TypeAlias = dict[str, Any]
"""One strategy of a comparison; `comparison_rows` lists its keys."""

NUMBERS = ("accuracy", "worst_decile_accuracy", "bytes_up", "bytes_down", "client_tasks", "virtual_seconds", "versions")
ACCOUNTS = ("accepted", "late", "rejected", "failed")


def comparison_rows(
    results: Sequence[Result], target: float | None = None, reference: str | None = None
) -> list[Summary]:
    """One row per strategy, in order of first appearance.

    Keys: strategy, runs, seeds, target, reached (runs that met the target), seconds_mean, seconds_sd, ratio (of mean
    times to the reference's), reference (whether the others are measured by this row), fastest; `<x>_mean` and
    `<x>_sd` for accuracy, worst_decile_accuracy, bytes_up, bytes_down, client_tasks, virtual_seconds and versions;
    `<x>_mean` for accepted, late, rejected and failed updates. None is "no figure".

    `target` None: the runs' own, which must be one. `reference` names a row; None is the fastest to the target.
    Raises ReportError for results that do not go together or do not hold what is needed.
    """
    checked = [_checked(result, number) for number, result in enumerate(results)]
    target = common_target(checked) if target is None else target
    groups: dict[str, list[Row]] = {}
    for row in checked:
        groups.setdefault(label(row), []).append(row)
    if reference is not None and reference not in groups:
        raise ReportError(f"reference {reference!r} is not among the strategies: {', '.join(groups)}")
    table = [_summary(name, members, target) for name, members in groups.items()]
    timed = [entry for entry in table if entry["seconds_mean"] is not None]
    fastest = min(timed, key=lambda entry: entry["seconds_mean"], default=None)
    base = fastest if reference is None else next(entry for entry in table if entry["strategy"] == reference)
    unit = None if base is None else base["seconds_mean"]
    for entry in table:
        time = entry["seconds_mean"]
        entry["fastest"], entry["reference"] = entry is fastest, entry is base
        entry["ratio"] = time / unit if unit and time is not None else None
    return table


def label(row: Row) -> str:
    """The display name of a result."""
    return row.text("label") or method_name(row)


def common_target(rows: Sequence[Row]) -> float:
    """The common target accuracy of all runs. Raises ReportError if there is none, or more than one."""
    if not rows:
        raise ReportError("there is nothing to compare: no run was given")
    targets = {row.number("target"): row for row in rows}
    if len(targets) > 1:
        stated = ", ".join(f"{value:g} in {row.path}" for value, row in targets.items())
        raise ReportError(f"the runs have different targets ({stated}): name one target for all")
    return next(iter(targets))


def time_to(row: Row, target: float) -> float | None:
    """Seconds to the first evaluation at or above the target; None if there is none. Raises ReportError."""
    if as_number(row.data.get("target")) == target:
        return row.optional("time_to_target")
    metrics = row.data.get("metrics")
    if not isinstance(metrics, Sequence):
        row.fail(f"its target is {row.data.get('target')!r}: for {target:g} its evaluations are needed")
    points = [(as_number(m.get("t")), as_number(m.get("accuracy"))) for m in metrics]
    return next((t for t, a in points if t is not None and a is not None and a >= target), None)


def mean(values: Sequence[float]) -> float | None:
    """The mean; None for no values."""
    return math.fsum(values) / len(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for fewer than two values."""
    middle = mean(values)
    if middle is None or len(values) < 2:
        return None
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


def _checked(result: Result, number: int) -> Row:
    path = result.get("path")
    return Row(Path(str(path)) if path else Path(f"result {number + 1}"), None, result)


def _summary(name: str, members: Sequence[Row], target: float) -> Summary:
    times = [t for t in (time_to(row, target) for row in members) if t is not None]
    enough = 2 * len(times) >= len(members)
    summary: Summary = {
        "strategy": name,
        "runs": len(members),
        "seeds": [row.data.get("seed") for row in members],
        "target": target,
        "reached": len(times),
        "seconds_mean": mean(times) if enough else None,
        "seconds_sd": deviation(times) if enough else None,
    }
    for key in NUMBERS:
        values = [v for v in (row.optional(key) for row in members) if v is not None]
        summary[f"{key}_mean"], summary[f"{key}_sd"] = mean(values), deviation(values)
    for key in ACCOUNTS:
        tallies = [sum(row.inner("updates").tally(key).values()) for row in members if "updates" in row.data]
        summary[f"{key}_mean"] = mean([float(n) for n in tallies])
    return summary
