"""The results of the study from the finished runs: tables, a heat map, and conclusions.

    python experiments/byzantine/table.py [--runs runs/byzantine] [--out experiments/results]

The conclusions are in `claims.md` in this folder; it is copied into the results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from grid import (  # noqa: E402  # after the path
    ASYNC_ATTACKS,
    ASYNC_RATE,
    ASYNC_RULES,
    FEWER_ATTACKS,
    FEWER_RULES,
    LARGE_ATTACKS,
    LARGE_RULES,
    MIXES,
    OPTIMISED,
    PLAIN,
    RATES,
    ROUNDS,
    RULES,
    SCHEDULES,
    STEPS,
    Cell,
    chosen,
)

TITLES = {"iid": "clients alike", "dirichlet": "label mixes ~ Dirichlet(0.1)"}
PACKAGES = ("flwr", "numpy", "torch")

Numbers = Mapping[tuple[str, str], Sequence[float]]
"""Final accuracies of the finished seeds by (rule, attack)."""


class Runs:
    """Final accuracies in a folder of runs, and the step sizes that were found."""

    def __init__(self, folder: Path) -> None:
        read = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        self.final = {name: float(row["final"]) for name, row in read.items()}
        self.diverged = sum(row["diverged"] for row in read.values())
        self.rates = chosen(self.final)

    def seeds(self, cell: Cell, count: int = 20) -> list[float]:
        """Scores of a cell under seeds 0, 1, ..."""
        names = (Cell(*_fields(cell, seed)).name for seed in range(count))
        return [self.final[name] for name in names if name in self.final]

    def numbers(
        self, part: str, mix: str, clients: int, f: int, rules: Iterable[str], attacks: Iterable[str]
    ) -> Numbers:
        attacks = list(attacks)
        found = {}
        for rule in rules:
            for attack in attacks:
                cell = Cell(part, rule, attack, mix, clients, f, 0, self.rates[rule, mix])
                if values := self.seeds(cell):
                    found[rule, attack] = values
        return found


def _fields(cell: Cell, seed: int) -> tuple[object, ...]:
    return (cell.part, cell.rule, cell.attack, cell.mix, cell.clients, cell.f, seed, cell.rate, cell.schedule)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in points; a number alone is one seed, two seeds are marked."""
    mean = f"{100 * statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" + ("" if len(values) > 2 else " (2)")


def worst(numbers: Numbers, rule: str, attacks: Iterable[str]) -> tuple[str, float] | None:
    """The attack of the lowest mean, and that; None if not all of them were run."""
    means = {a: statistics.mean(numbers[rule, a]) for a in attacks if (rule, a) in numbers}
    if not means or set(means) != set(attacks):
        return None
    at = min(means, key=lambda a: means[a])
    return at, means[at]


def table(numbers: Numbers, rules: Iterable[str], attacks: Sequence[str]) -> list[str]:
    """UpdateMatrix: rules; columns: attacks and the worst of them."""
    real = [a for a in attacks if a != "none"]
    lines = ["| rule | " + " | ".join(attacks) + " | worst |", "|---|" + "--:|" * len(attacks) + "---|"]
    for rule in rules:
        cells = [spread(numbers[rule, a]) if (rule, a) in numbers else "" for a in attacks]
        found = worst(numbers, rule, real)
        cells.append(f"**{100 * found[1]:.1f}** {found[0]}" if found else "")
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return lines


def heat_map(runs: Runs, path: Path) -> None:
    """Accuracy by rule and attack at f = 3, one panel per mix."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(MIXES), figsize=(13, 5.2), sharey=True, layout="constrained")
    for axis, mix in zip(axes, MIXES, strict=True):
        numbers = runs.numbers("small", mix, 15, 3, RULES, PLAIN)
        cells = [[100 * statistics.mean(numbers.get((r, a), [float("nan")])) for a in PLAIN] for r in RULES]
        image = axis.imshow(cells, vmin=10, vmax=90, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(PLAIN)), PLAIN, rotation=35, ha="right")
        axis.set_yticks(range(len(RULES)), list(RULES))
        axis.set_title(f"{TITLES[mix]}, 3 of 15 attack")
        for y, row in enumerate(cells):
            for x, value in enumerate(row):
                if value == value:  # not a gap
                    axis.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black")
    figure.colorbar(image, ax=axes, label="test accuracy, %")
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def sections(runs: Runs) -> list[str]:
    """All tables."""
    lines = []
    for f, rules, attacks in (
        (3, RULES, (*PLAIN, *OPTIMISED)),
        (2, FEWER_RULES, FEWER_ATTACKS),
        (1, FEWER_RULES, FEWER_ATTACKS),
    ):
        for mix in MIXES:
            numbers = dict(runs.numbers("small", mix, 15, f, rules, attacks))
            if not numbers:
                continue
            shown = [a for a in attacks if any((r, a) in numbers for r in rules)]
            lines += ["", f"## {f} of 15 attack, {TITLES[mix]}", ""]
            lines += table_with_gaps(numbers, rules, shown)
    for mix in MIXES:
        numbers = runs.numbers("large", mix, 60, 12, LARGE_RULES, LARGE_ATTACKS)
        if numbers:
            lines += ["", f"## 12 of 60 attack, {TITLES[mix]}", "", *table(numbers, LARGE_RULES, LARGE_ATTACKS)]
    rows = []
    for schedule in SCHEDULES:
        for mix in MIXES:
            for rule in ASYNC_RULES:
                found = [runs.seeds(Cell("async", rule, a, mix, 15, 3, 0, ASYNC_RATE, schedule)) for a in ASYNC_ATTACKS]
                if any(found):
                    cells = " | ".join(spread(v) if v else "" for v in found)
                    rows.append(f"| {schedule} | {TITLES[mix]} | {rule} | {cells} |")
    if rows:
        lines += ["", "## Semi-asynchronous, 3 of 15 attack", ""]
        lines += [
            "| schedule | data | rule | " + " | ".join(ASYNC_ATTACKS) + " |",
            "|---|---|---|" + "--:|" * len(ASYNC_ATTACKS),
        ]
        lines += rows
    return lines


def table_with_gaps(numbers: Numbers, rules: Iterable[str], attacks: Sequence[str]) -> list[str]:
    """As `table`, with the worst taken over the attacks that every rule met."""
    rules = list(rules)
    common = [a for a in attacks if all((r, a) in numbers for r in rules)]
    lines = table(numbers, rules, attacks)
    for at, rule in enumerate(rules):
        found = worst(numbers, rule, [a for a in common if a != "none"])
        last = f"**{100 * found[1]:.1f}** {found[0]}" if found else ""
        lines[at + 2] = lines[at + 2].rsplit("|", 2)[0] + f"| {last} |"
    return lines


def main() -> None:
    """Write byzantine.md and byzantine.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "byzantine")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results")
    given = parser.parse_args()
    runs = Runs(given.runs)
    given.out.mkdir(parents=True, exist_ok=True)
    heat_map(runs, given.out / "byzantine.png")
    rates = [f"| {r} | " + " | ".join(f"{runs.rates[r, m]:g}" for m in MIXES) + " |" for r in RULES]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    lines = [
        "# Robust rules under attack",
        "",
        "    python experiments/byzantine/run.py --data DIR --seeds 0 1 2",
        "    python experiments/byzantine/table.py",
        "",
        f"MNIST, 10,000 images; a linear model; {ROUNDS} rounds of {STEPS} local steps of batch 32; all clients in",
        "every round, all counting the same. Test accuracy in % after the last round (not the best on the way), mean ±",
        "standard deviation over seeds 0, 1, 2; (2) marks two seeds, a number alone is one. Rules that take f are told",
        "the true one.",
        "`worst` is the lowest mean over the attacks that all rules of a table met.",
        f"{len(runs.final)} runs; {runs.diverged:.0f} ended in numbers that are not finite and count as chance, 10 %.",
        "",
        "![Accuracy by rule and attack](byzantine.png)",
        "",
        *(HERE / "claims.md").read_text().strip().splitlines(),
        *sections(runs),
        "",
        f"## Step sizes, from {' and '.join(map(str, RATES))}",
        "",
        "The better worst case over label flipping and ALIE with 2 of 15 attackers, on a seed of its own (same test",
        "images).",
        "",
        "| rule | " + " | ".join(TITLES[m] for m in MIXES) + " |",
        "|---|" + "--:|" * len(MIXES),
        *rates,
        "",
        f"Versions: Python {platform.python_version()}, {versions}.",
        "",
    ]  # fmt: skip
    (given.out / "byzantine.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
