"""Adapters of equal and unequal rank, combined in every way there is: the runs, resumable.

    python experiments/flora/run.py digits [--seeds 0 1 2] [--out runs/flora]

Each method has its own learning rate, chosen on held-back data with a seed of its own. A finished run is not repeated:
start again to go on, and add seeds or methods at any time. `table.py` writes the tables from what there is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.flora.methods import METHODS, Method  # noqa: E402  # after the path and the number of threads
from fedhet import config  # noqa: E402
from fedhet.experiment import Experiment  # noqa: E402
from fedhet.result import Result  # noqa: E402

CONF = Path(__file__).resolve().parent / "conf"
CHOOSING = 100
"""The seed of runs that choose a learning rate."""

EQUAL, UNEQUAL = "4,4,4,4,4,4,4,4", "32,16,8,8,4,4,2,2"


@dataclass(frozen=True)
class Setting:
    """One column of a table: who has which rank, how labels are spread, how rounds are cut."""

    name: str
    ranks: str
    alpha: float
    rounds: int = 30
    steps: int = 10

    @property
    def equal(self) -> bool:
        return len(set(self.ranks.split(","))) == 1

    @property
    def overrides(self) -> list[str]:
        return [
            "data=shifted_digits", "partition=dirichlet", f"partition.alpha={self.alpha}", f"budget.steps={self.steps}",
            f"fleet.ranks=[{self.ranks}]", f"stop.versions={self.rounds}", "model.model.hidden=[128,128]",
        ]  # fmt: skip

    def space(self) -> list[str]:
        """The largest rank there is is the space's."""
        return [f"space.rank={max(map(int, self.ranks.split(',')))}"]


SETTINGS = [
    Setting(f"{kind}-{'skewed' if alpha < 1 else 'even'}", ranks, alpha)
    for alpha in (0.3, 100.0)
    for kind, ranks in (("unequal", UNEQUAL), ("equal", EQUAL))
] + [Setting("unequal-skewed-long", UNEQUAL, 0.3, 3, 100), Setting("equal-skewed-long", EQUAL, 0.3, 3, 100)]


def run(folder: Path, texts: Sequence[str]) -> Result:
    """The result in a folder, computed if it is not there yet."""
    if (folder / "result.json").is_file():
        return Result.read(folder)
    print(folder, flush=True)
    return Experiment.of(config.resolved(config.compose(texts, CONF))).run(folder, resume=True)


def base(out: Path) -> Path:
    """The run whose weights every other starts from: the same perceptron on upright digits, trained at one place."""
    folder = out / "digits" / "base"
    run(folder, [
        "data=shifted_digits", "data.shift=false", "fleet=homogeneous", "fleet.clients=1", "partition=iid",
        "model=mlp", "model.hidden=[128,128]", "work=adam", "work.lr=0.003", "budget.steps=400", "budget.epochs=null",
        "stop.versions=1", "workers=0",
    ])  # fmt: skip
    return folder


def one(out: Path, setting: Setting, name: str, method: Method, lr: float, seed: int, choosing: bool) -> Result:
    """One run of a method."""
    texts = [
        *method.overrides, *(setting.space() if method.adapters else []), "fleet=ranked", "budget.epochs=null",
        *setting.overrides,
        "workers=0", "checkpoint.every_seconds=1.0e9", f"seed={seed}", f"work.lr={lr}",
        f"data.validation={str(choosing).lower()}", "model=checkpoint", f"model.path={base(out)}",
    ]  # fmt: skip
    kind = "choosing" if choosing else f"seed{seed}"
    return run(out / "digits" / setting.name / name / f"lr{lr:g}-{kind}", texts)


def score(result: Result) -> float:
    """Mean accuracy of the last three evaluations."""
    return float(result["accuracy"][-3:].mean())


def chosen(out: Path, setting: Setting, name: str, method: Method) -> float:
    """The learning rate with the best accuracy on held-back data."""
    if len(method.rates) == 1:
        return method.rates[0]
    scores = {lr: score(one(out, setting, name, method, lr, CHOOSING, True)) for lr in method.rates}
    return max(scores, key=lambda lr: (scores[lr], -lr))


def cells(setting: Setting) -> Iterator[tuple[str, Method]]:
    """The methods a setting can be run with, those whose parts are there."""
    for name, method in METHODS.items():
        if (method.equal if setting.equal else method.unequal) and method.there:
            yield name, method


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing, setting by setting, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=[s.name for s in SETTINGS])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "flora")
    given = parser.parse_args(None if arguments is None else list(arguments))
    for seed in given.seeds:
        for setting in [s for s in SETTINGS if s.name in given.settings]:
            for name, method in cells(setting):
                lr = chosen(given.out, setting, name, method)
                result = one(given.out, setting, name, method, lr, seed, False)
                print(f"{setting.name} {name} lr {lr:g} seed {seed}: {score(result):.3f}", flush=True)


if __name__ == "__main__":
    main()
