"""Tables and a figure from the finished runs.

python experiments/flora/table.py [--out runs/flora] [--table experiments/results/flora.md]
                                  [--figure experiments/results/flora.png]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  # after the path
import safetensors.torch  # noqa: E402

from clients.models.build import build  # noqa: E402
from clients.models.vision import mlp  # noqa: E402
from experiments.flora.methods import METHODS  # noqa: E402
from experiments.flora.run import SETTINGS, Setting, score  # noqa: E402
from experiments.flora.tasks import ShiftedDigits  # noqa: E402
from fedhet.runs.result import Result  # noqa: E402
from fedhet.runs.saved_run import install  # noqa: E402

PILOT = {
    ("equal-skewed", "FedIT"): "10.7/49.4/78.3/91.0 (1.6)",
    ("equal-skewed", "FLoRA"): "12.9/44.1/74.6/89.9 (2.1)",
    ("equal-skewed", "FLoRA, one start a round"): "12.4/40.8/70.2/89.6 (0.8)",
    ("equal-skewed", "FFA-LoRA"): "17.0/54.4/72.3/81.2",
    ("equal-skewed", "RoLoRA"): "12.5/38.1/70.6/87.2 (2.8)",
    ("equal-skewed", "FedEx-LoRA"): "12.1/61.0/80.5/91.2 (1.3)",
    ("equal-skewed", "FlexLoRA"): "11.5/60.8/80.5/91.1 (3.0)",
    ("equal-skewed", "exact-warm"): "12.1/64.5/79.3/92.0 (1.2)",
    ("equal-skewed", "FedIT as in public code"): "13.0 at the end",
    ("equal-skewed", "full"): "14.6/62.5/84.2/93.1 (1.4)",
    ("unequal-skewed", "zero-padding"): "18.3/48.6/71.7/85.7 (3.4)",
    ("unequal-skewed", "HetLoRA weights"): "18.4/49.2/67.5/86.9 (1.3)",
    ("unequal-skewed", "FFA-LoRA"): "71.5 at the end",
    ("unequal-skewed", "FLoRA"): "17.5/69.3/82.6/91.7 (1.8)",
    ("unequal-skewed", "FlexLoRA"): "18.7/68.9/80.7/88.0 (2.6)",
    ("unequal-skewed", "exact-warm"): "18.7/72.6/85.1/90.9 (1.7)",
}
"""A prototype's test accuracies (%) after 1, 5, 10 and 30 rounds, standard deviation of the last over three seeds."""

ROUNDS = (1, 5, 10, 30)
SHOWN = next(setting for setting in SETTINGS if setting.name == "short")
"""The text setting of the figure."""


def results(out: Path, setting: Setting, name: str) -> list[Result]:
    """A method's finished runs in a setting, by seed; of rates that lost the choice there are none."""
    folder = out / setting.task / setting.name / name
    paths = sorted(folder.glob("lr*-seed*/result.json"), key=lambda p: p.parent.name.partition("-")[2])
    return [Result.read(p.parent) for p in paths]


def rate(result: Result) -> str:
    return result.path.name.partition("-")[0].removeprefix("lr")


def spread(values: Sequence[float], form: str) -> str:
    """Mean, standard deviation, number of seeds."""
    if len(values) < 2:
        return f"{values[0]:{form}} (1)"
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}} ({len(values)})"


def cell_rows(out: Path, setting: Setting, make: Callable[[str, list[Result]], Sequence[str]]) -> Iterator[str]:
    """A line for each method that has runs."""
    for name in METHODS:
        found = results(out, setting, name)
        if found:
            yield f"| {' | '.join([name, *make(name, found)])} |"


def table(head: Sequence[str], rows: Iterator[str]) -> list[str]:
    return ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows, ""]


def digits(out: Path, setting: Setting) -> list[str]:
    """Accuracy by round beside the prototype's, and at equally many bytes."""
    least = least_traffic(out, setting)

    def make(name: str, found: list[Result]) -> list[str]:
        at = [statistics.mean(float(r["accuracy"][r["version"] == n][0]) for r in found) for n in ROUNDS]
        curve = "/".join(f"{100 * x:.1f}" for x in at)
        moved = [traffic(out, setting, r) for r in found]
        level = [100 * float(np.interp(least, m, smooth(r["accuracy"]))) for m, r in zip(moved, found, strict=True)]
        cells = [spread([100 * score(r) for r in found], ".1f"), f"{moved[0][-1]:.1f}", spread(level, ".1f")]
        return [rate(found[0]), curve, *cells, PILOT.get((setting.name, name), "–")]

    told = ["last 3 evaluations, ± sd (seeds)", "MB", f"at {least:.1f} MB", "prototype 1/5/10/30 (sd)"]
    return table(["method", "rate", "after 1/5/10/30", *told], cell_rows(out, setting, make))


def smooth(values: np.ndarray) -> np.ndarray:
    """Of each evaluation and the two before it the mean: what `score` is at the end."""
    return np.array([values[max(0, at - 2) : at + 1].mean() for at in range(len(values))])


def traffic(out: Path, setting: Setting, result: Result) -> np.ndarray:
    """Bytes up and down at every evaluation, in MB, without the base weights of the first contact."""
    base = safetensors.torch.load_file(setting.base(out) / "model.safetensors")
    first = result.row["clients"] * sum(leaf.numel() * 4 for leaf in base.values())
    total = result["bytes_up"] + result["bytes_down"]
    return np.asarray(np.maximum(total - first * (total > 0), 0.0) / 1e6)


def least_traffic(out: Path, setting: Setting) -> float:
    """MB in all of the method that needs fewest."""
    ends = (traffic(out, setting, r)[-1] for name in METHODS for r in results(out, setting, name))
    return float(min(ends, default=0.0))


def text(out: Path, setting: Setting) -> list[str]:
    """Held-out loss at the end of equally many epochs, and at equally many bytes."""
    everything = [result for name in METHODS for result in results(out, setting, name)]
    if not everything:
        return []
    least = least_traffic(out, setting)

    def make(name: str, found: list[Result]) -> list[str]:
        worst = [max(json.loads((r.path / "losses.json").read_text())) for r in found]
        moved = [traffic(out, setting, r) for r in found]
        level = [float(np.interp(least, m, r["loss"])) for m, r in zip(moved, found, strict=True)]
        mean = spread([float(r["loss"][-1]) for r in found], ".3f")
        return [rate(found[0]), mean, spread(worst, ".3f"), f"{moved[0][-1]:.1f}", spread(level, ".3f")]

    start = float(everything[0]["loss"][0])
    head = ["method", "rate", "held-out loss", "worst client's", "MB", f"loss at {least:.1f} MB"]
    told = f"{setting.rounds} rounds of {setting.steps} steps; the base model's loss is {start:.3f}."
    return [told, *table(head, cell_rows(out, setting, make))]


def large(out: Path, *settings: Setting) -> list[str]:
    """The same of a larger model, if there are runs of one."""
    rows = [line for setting in settings for line in text(out, setting)]
    one = settings[0]
    return [f"## The same, a model of {one.depth} blocks of width {one.width}", "", *rows] if rows else []


def errors(out: Path) -> list[str]:
    """Distance from the exact mean, first and last round measured."""
    path = out / "errors.json"
    if not path.is_file():
        return []
    found: dict[str, list[float]] = json.loads(path.read_text())
    rows: dict[tuple[str, str], list[str]] = {}
    for key, values in found.items():
        setting, name, _ = key.split("|")
        rows.setdefault((setting.partition("-")[0], name), []).append(f"{values[0]:.1e}, {values[-1]:.1e}")
    steps = list(dict.fromkeys(key.split("|")[2] for key in found))
    lines = (f"| {ranks} | {name} | {' | '.join(cells)} |" for (ranks, name), cells in rows.items())
    return table(["ranks", "method", *(f"{s} steps" for s in steps)], lines)


def overscaled(out: Path) -> str:
    """Zero-padding scored with its adapters at sixteen times their scale, as one public evaluation has it."""
    data, found = ShiftedDigits().load(), []
    for result in results(out, SETTINGS[0], "zero-padding"):
        places = (SETTINGS[0].base(out), result.path)
        base, end = (safetensors.torch.load_file(place / "model.safetensors") for place in places)
        model = build(partial(mlp, hidden=(128, 128)), data.input_shape, data.classes, 0)
        install(model.module, {n: base[n] + 16 * (end[n] - base[n]) for n in base})
        found.append(100 * float((model.predict(data.x_test).argmax(-1) == data.y_test).double().mean()))
    return spread(found, ".1f") if found else "not run"


def figure(out: Path, path: Path) -> None:
    """Text: loss against traffic; digits: accuracy against rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name in METHODS:
        for found, axes in ((results(out, SHOWN, name), left), (results(out, SETTINGS[0], name), right)):
            if not found:
                continue
            if axes is left:
                x, y = traffic(out, SHOWN, found[0]), [r["loss"] for r in found]
            else:
                x, y = found[0]["version"], [100 * r["accuracy"] for r in found]
            axes.plot(x, np.mean(y, axis=0), label=name, linewidth=1.4)
    left.set(xlabel="MB up and down, without first contact", ylabel="held-out loss (nats)")
    left.set_title("Ciphered Shakespeare, 12 rounds of 3 steps")
    right.set(xlabel="round", ylabel="test accuracy (%)", title="Shifted digits, ranks 32 to 2, label skew")
    right.legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main() -> None:
    """Write everything there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "flora")
    parser.add_argument("--table", type=Path, default=ROOT / "experiments" / "results" / "flora.md")
    parser.add_argument("--figure", type=Path, default=ROOT / "experiments" / "results" / "flora.png")
    given = parser.parse_args()
    done = [Result.read(p.parent) for p in sorted(given.out.glob("*/*/*/lr*-seed*/result.json"))]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(done[0].row["packages"].items()) if v)
    seeds = sorted({int(r.row["seed"]) for r in done})
    by_name = {setting.name: setting for setting in SETTINGS}
    lines = [
        "# Adapters of equal and unequal rank",
        "",
        "    python experiments/flora/run.py text --data DIR",
        "    python experiments/flora/run.py digits",
        "    python experiments/flora/errors.py",
        "    python experiments/flora/table.py",
        "",
        f"Seeds {', '.join(map(str, seeds))}; a cell says how many of them it rests on. What is asked and what the",
        "answers are: [experiments/flora](../flora/README.md).",
        "",
        "## Ciphered Shakespeare, ranks 64, 32, 16, 16, 8, 8, 4, 4, 4, 4",
        "",
        *text(given.out, by_name["long"]),
        *text(given.out, by_name["short"]),
        *large(given.out, by_name["long-large"], by_name["short-large"]),
        "## Shifted digits, label skew, 30 rounds of 10 steps",
        "",
        "Accuracy at equally many bytes is the mean of three evaluations, read off between two rounds.",
        "",
        "Ranks 32, 16, 8, 8, 4, 4, 2, 2:",
        *digits(given.out, by_name["unequal-skewed"]),
        "All ranks 4:",
        *digits(given.out, by_name["equal-skewed"]),
        f"Zero-padding scored at 16 times its scale: {overscaled(given.out)}.",
        "",
        "## Distance from the exact mean of what clients learnt",
        "",
        "Relative Frobenius error on shifted digits with label skew: in the first round, in the last one measured.",
        *errors(given.out),
        f"![Loss against traffic, accuracy against rounds]({given.figure.name})",
        "",
        f"Versions: {versions}.",
        "",
    ]
    given.table.write_text("\n".join(lines))
    figure(given.out, given.figure)


if __name__ == "__main__":
    main()
