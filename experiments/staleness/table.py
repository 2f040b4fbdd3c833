"""The results page and its figure from the finished runs of `run.py`.

    python experiments/staleness/table.py [--runs DIR] [--page experiments/results/staleness.md]

Accuracies are means over the last ten evaluated rounds, one cycle of the ten blocks: between rounds the accuracy of the
affected class varies with the block that was combined last.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAST, CYCLE = 10, 10

ORDER = (
    "fresh", "inversion", "inversion, 40 images", "inversion, unique only", "inversion, largest 5 %",
    "inversion, noise of 1 rms", "discount", "direct", "first order", "prediction", "prediction, one cycle", "tiers",
)  # fmt: skip
LABELS = {
    "fresh": "nobody late (bound)",
    "inversion": "inversion",
    "inversion, 40 images": "inversion, 40 images, 100/30 iterations",
    "inversion, unique only": "inversion, unique updates only",
    "inversion, largest 5 %": "inversion, the largest 5 % of coordinates",
    "inversion, noise of 1 rms": "inversion, noise of 1 rms on late updates",
    "discount": "discount 2^(-late/20)",
    "direct": "direct",
    "first order": "first order, lambda 4",
    "prediction": "predicted weights",
    "prediction, one cycle": "predicted weights, one cycle ahead at most",
    "tiers": "two tiers",
}
Run = Mapping[str, Any]


def final(run: Run, column: int) -> float:
    """Mean of a column over the last rounds: 1 all classes, 2 the affected one."""
    return statistics.mean(row[column] for row in run["rows"] if row[0] > run["rounds"] - LAST)


def reached(run: Run, column: int, goal: float) -> str:
    """The first round since the beginning of staleness at which the mean over a cycle is at the goal."""
    for at, *_ in run["rows"]:
        window = [row[column] for row in run["rows"] if at - CYCLE < row[0] <= at]
        if at >= run["delay"] + CYCLE and statistics.mean(window) >= goal:
            return str(at)
    return "never"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in per cent; of one seed the value."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(runs: Sequence[Run], stale: int) -> list[str]:
    """One table: how late, method by method."""
    by = defaultdict(list)
    for run in runs:
        if run["stale"] == stale or run["method"] == "fresh":
            by[run["method"]].append(run)
    if set(by) <= {"fresh"}:
        return []
    lines = [
        f"## {stale} rounds late",
        "",
        "| late updates | affected class, % | all classes, % | round at 40 % affected | round at 70 % of all "
        "| server seconds | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in filter(by.__contains__, ORDER):
        some = sorted(by[name], key=lambda run: run["seed"])
        rounds = [", ".join(reached(run, i, goal) for run in some) for i, goal in ((2, 0.4), (1, 0.7))]
        seconds = statistics.mean(run["server_seconds"] for run in some)
        cells = [LABELS[name], spread([final(r, 2) for r in some]), spread([final(r, 1) for r in some]), *rounds]
        lines.append(f"| {' | '.join(cells)} | {seconds:.1f} | {', '.join(str(r['seed']) for r in some)} |")
    return [*lines, ""]


def figure(runs: Sequence[Run], stale: int, path: Path) -> None:
    """Mean over a cycle of the affected class's accuracy against rounds, mean over seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(7.5, 4.2))
    for name in ORDER:
        some = [r for r in runs if r["method"] == name and (r["stale"] == stale or name == "fresh")]
        if not some:
            continue
        at = [row[0] for row in some[0]["rows"]]
        means = [
            statistics.mean(row[2] for run in some for row in run["rows"] if t - CYCLE < row[0] <= t) for t in at
        ]  # fmt: skip
        axes.plot(at, means, label=LABELS[name], color="black" if name == "fresh" else None)
    axes.axvline(some[0]["delay"] if some else 40, color="grey", linewidth=0.8)
    axes.set(xlabel="round", ylabel="accuracy on the affected class", title=f"{stale} rounds late from round 40 on")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def main(arguments: Iterable[str] | None = None) -> None:
    """Replace the tables between the marks of the page; what people wrote around them stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "staleness")
    parser.add_argument("--page", type=Path, default=ROOT / "experiments" / "results" / "staleness.md")
    given = parser.parse_args(None if arguments is None else list(arguments))
    runs = [json.loads(path.read_text()) for path in sorted(given.runs.glob("*.json"))]
    delays = sorted({run["stale"] for run in runs if run["stale"]}, reverse=True)
    body = [line for stale in delays for line in table(runs, stale)]
    figure(runs, delays[0], given.page.with_suffix(".png"))
    begin, end = "<!-- tables -->", "<!-- end of tables -->"
    text = given.page.read_text() if given.page.is_file() else f"{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    given.page.write_text(f"{head}{begin}\n" + "\n".join(body) + f"{end}{tail}")


if __name__ == "__main__":
    main()
