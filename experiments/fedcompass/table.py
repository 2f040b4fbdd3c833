"""Write the results file and its figure from the finished runs.

python experiments/fedcompass/table.py [--runs runs/fedcompass] [--results experiments/results] [--goal 0.8]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.fedcompass.study import FLEETS, METHODS, PARTITIONS, VARIANTS, time_to  # noqa: E402  # after the path

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  # after the choice of how to draw

Run = dict[str, Any]
Cell = tuple[int, str, str]
OURS, UNBIASED, DOUBLE = "FedCompass", "unbiased", "twice the server's step"
SHORT = {"class_partition": "class", "dual_dirichlet": "dual Dirichlet"}
COLORS = dict(zip(METHODS, ("#6d6b84", "#d6296b", "#e8590c", "#2376d8", "#2f8f3e"), strict=True))


def load(folder: Path, bench: str) -> dict[str, dict[Cell, dict[int, Run]]]:
    """Finished runs by name, cell and seed."""
    found: dict[str, dict[Cell, dict[int, Run]]] = {}
    for path in sorted(folder.glob(f"{bench}-*.json")):
        run = json.loads(path.read_text())
        cell = (run["clients"], run["fleet"], run["partition"])
        found.setdefault(run["name"], {}).setdefault(cell, {})[run["seed"]] = run
    return found


def even(runs: dict[str, dict[Cell, dict[int, Run]]], names: Iterable[str]) -> dict[Cell, list[int]]:
    """The seeds that every one of these names has finished, by cell; cells without any are left out."""
    names = list(names)
    cells = sorted(
        set.intersection(*(set(runs.get(name, {})) for name in names)),
        key=lambda c: (c[0], FLEETS.index(c[1]), PARTITIONS.index(c[2])),
    )
    common = {cell: sorted(set.intersection(*(set(runs[name][cell]) for name in names))) for cell in cells}
    return {cell: seeds for cell, seeds in common.items() if seeds}


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation; of one value the value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def ratio(one: float, other: float) -> str:
    """Of two times; a dash if the first is infinite, and "only" if the second is."""
    if math.isinf(one):
        return "-"
    return "only" if math.isinf(other) else f"{one / other:.2f}"


def median_time(runs: Iterable[Run], goal: float) -> float:
    """Median seconds to the goal, those that never reach it as infinity."""
    return statistics.median(time_to(run, goal) for run in runs)


def times(runs: dict[str, dict[Cell, dict[int, Run]]], names: Sequence[str], goal: float) -> list[str]:
    """One row a cell: relative time to the goal, and how many runs reach it."""
    lines = [
        f"| clients | speeds | partition | seeds | {' | '.join(names)} | {OURS}, s |",
        "|---" * (5 + len(names)) + "|",
    ]
    for cell, seeds in even(runs, names).items():
        base = median_time((runs[OURS][cell][s] for s in seeds), goal)
        texts = []
        for name in names:
            done = [runs[name][cell][s] for s in seeds]
            there = sum(math.isfinite(time_to(run, goal)) for run in done)
            texts.append(f"{ratio(median_time(done, goal), base)} ({there}/{len(seeds)})")
        head = f"| {cell[0]} | {cell[1]} | {SHORT[cell[2]]} | {len(seeds)} | "
        lines.append(head + " | ".join(texts) + f" | {'-' if math.isinf(base) else f'{base:.0f}'} |")
    return lines


def tops(runs: dict[str, dict[Cell, dict[int, Run]]], names: Sequence[str]) -> list[str]:
    """One row a cell: best test accuracy of a run, in percent."""
    lines = [f"| clients | speeds | partition | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    for cell, seeds in even(runs, names).items():
        texts = [spread([100 * max(runs[name][cell][s]["accuracy"]) for s in seeds]) for name in names]
        lines.append(f"| {cell[0]} | {cell[1]} | {SHORT[cell[2]]} | {' | '.join(texts)} |")
    return lines


def paired(
    runs: dict[str, dict[Cell, dict[int, Run]]], name: str, fleet: str, goal: float, than: str = OURS
) -> dict[str, list[float]]:
    """A method against another, run by run on one law of speeds: ratios of times where both arrive, who was first (1, 0
    or 1/2), and differences of top accuracy in points."""
    out: dict[str, list[float]] = {"ratio": [], "first": [], "top": []}
    for cell, seeds in even(runs, [name, than]).items():
        for seed in seeds if cell[1] == fleet else ():
            a, b = runs[name][cell][seed], runs[than][cell][seed]
            one, other = time_to(a, goal), time_to(b, goal)
            if math.isfinite(one) and math.isfinite(other):
                out["ratio"].append(one / other)
            if math.isfinite(one) or math.isfinite(other):
                out["first"].append(0.5 if one == other else float(one < other))
            out["top"].append(100 * (max(a["accuracy"]) - max(b["accuracy"])))
    return out


def summary(
    runs: dict[str, dict[Cell, dict[int, Run]]], names: Sequence[str], goal: float, than: str = OURS
) -> list[str]:
    """One row a method and law of speeds: paired with another method over all cells and seeds of both."""
    lines = [
        f"| method | speeds | time relative to {than} | sooner than {than} | top accuracy, points more | staleness "
        "| updates a version | local steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        for fleet in FLEETS:
            done = [r for c, by in runs.get(name, {}).items() if c[1] == fleet for r in by.values()]
            if not done:
                continue
            both = paired(runs, name, fleet, goal, than)
            log = [math.log(x) for x in both["ratio"]]
            middle = f"{math.exp(statistics.mean(log)):.2f}" if log else "-"
            first = f"{100 * statistics.mean(both['first']):.0f} % of {len(both['first'])}" if both["first"] else "-"
            more = spread(both["top"]) if both["top"] else "-"
            if name == than:
                middle, first, more = "1.00", "", ""
            means = [statistics.mean(r[key] for r in done) for key in ("staleness", "size", "steps")]
            lines.append(
                f"| {name} | {fleet} | {middle} | {first} | {more} | {means[0]:.2f} | {means[1]:.2f} | {means[2]:.0f} |"
            )
    return lines


def figure(runs: dict[str, dict[Cell, dict[int, Run]]], path: Path) -> None:
    """Mean test accuracy over virtual time, one panel a law of speeds."""
    pyplot.rcParams.update({"font.size": 8})
    picture, panels = pyplot.subplots(1, len(FLEETS), figsize=(8, 2.6), sharey=True)
    common = even(runs, METHODS)
    for panel, fleet in zip(panels, FLEETS, strict=True):
        for name in METHODS:
            done = [runs[name][c][s] for c, seeds in common.items() if c[1] == fleet for s in seeds]
            if not done:
                continue
            grid = np.linspace(0, done[0]["seconds"], 201)
            curves = [np.array(r["accuracy"])[np.searchsorted(r["t"], grid, side="right") - 1] for r in done]
            panel.plot(grid, 100 * np.mean(curves, axis=0), label=name, color=COLORS[name], linewidth=1.4)
        panel.set_title(fleet)
        panel.set_xlabel("virtual seconds")
        panel.grid(alpha=0.25)
        panel.set_ylim(40, 95)
    panels[0].set_ylabel("test accuracy, %")
    panels[-1].legend(fontsize=7, loc="lower right")
    picture.tight_layout()
    picture.savefig(path, dpi=110)


def other(folder: Path, bench: str, title: str, goal: float) -> list[str]:
    """The tables of another data set or model, from whatever is finished; nothing if nothing is."""
    runs = load(folder, bench)
    if not even(runs, METHODS):
        return []
    names = [*METHODS, *(n for n in VARIANTS if n in runs)]
    rates = {n: sorted({r["rate"] for by in runs[n].values() for r in by.values()}) for n in names}
    return [
        f"## {title}, to {goal:.0%}", "",
        "Learning rates: " + ", ".join(f"{n} {'/'.join(f'{x:g}' for x in rates[n])}" for n in names) + ".", "",
        *times(runs, names, goal), "", *tops(runs, names), "",
    ]  # fmt: skip


def report(folder: Path, results: Path, goal: float) -> str:
    """The whole results file; the figure is written beside it."""
    runs = load(folder, "mnist")
    rates = {name: {r["rate"] for by in runs[name].values() for r in by.values()} for name in METHODS}
    wall = sum(r["wall_seconds"] for by_cell in runs.values() for by in by_cell.values() for r in by.values())
    any_run = next(r for by in runs[OURS].values() for r in by.values())
    figure(runs, results / "fedcompass.png")
    parts = [
        "# FedCompass and its rivals over its own grid",
        "",
        "    python experiments/fedcompass/run.py grid variants whole:unbiased --data DIR",
        "    python experiments/fedcompass/table.py",
        "",
        f"Setting and question: [experiments/fedcompass](../fedcompass/README.md). Goal: {goal:.0%} test accuracy.",
        f"All runs together took {wall / 3600:.1f} hours on a share of one core. Learning rates found: "
        + ", ".join(f"{name} {'/'.join(f'{x:g}' for x in sorted(rates[name]))}" for name in METHODS) + ".",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in sorted(any_run["packages"].items()) if v) + ".",
        "",
        "![Mean test accuracy over virtual time by law of speeds](fedcompass.png)",
        "",
        f"## Time to {goal:.0%}, {OURS} = 1.00",
        "",
        "Medians over seeds, runs that never get there counted as infinitely long (a dash if that is the median); in",
        "brackets how many runs get there.",
        "",
        *times(runs, list(METHODS), goal),
        "",
        "## Top accuracy, %",
        "",
        *tops(runs, list(METHODS)),
        "",
        "## Run by run",
        "",
        f"Each run against the {OURS} run of the same cell and seed: geometric mean of the ratios of times where",
        "both get there; how often it gets there sooner; by how many points its top accuracy is higher. Means over all",
        "runs of staleness, updates a version (without first returns) and local steps done.",
        "",
        *summary(runs, list(METHODS), goal),
        "",
    ]  # fmt: skip
    named = [name for name in VARIANTS if name in runs]
    if named:
        parts += ["## FedCompass composed otherwise", "", *summary(runs, [OURS, *named], goal), ""]
    if {UNBIASED, DOUBLE} <= set(named):
        parts += [f"## {UNBIASED.capitalize()} against {DOUBLE}", "", *summary(runs, [UNBIASED], goal, DOUBLE), ""]
    whole = [name for name in named if len({cell[1] for cell in runs[name]}) == len(FLEETS)]
    if whole:
        parts += ["## Those that ran on all laws of speeds", "", *times(runs, [OURS, *whole], goal), ""]
        parts += [*tops(runs, [OURS, *whole]), ""]
    parts += other(folder, "cnn", "The convolutional network, its Adam, 80 seconds with half the steps", 0.5)
    parts += other(folder, "cifar10", "CIFAR-10, a perceptron, 200 seconds", 0.2)
    return "\n".join(parts)


def main(arguments: Iterable[str] | None = None) -> None:
    """Write experiments/results/fedcompass.md and fedcompass.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "fedcompass")
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results")
    parser.add_argument("--goal", type=float, default=0.8)
    given = parser.parse_args(None if arguments is None else list(arguments))
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "fedcompass.md").write_text(report(given.runs, given.results, given.goal))


if __name__ == "__main__":
    main()
