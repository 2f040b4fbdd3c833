"""Comparison of methods for LoRA adapters of equal and unequal rank: the runs, resumable.

    python experiments/flora/run.py digits [--seeds 0 1 2] [--out runs/flora]
    python experiments/flora/run.py text --data DIR [--seeds 0 1 2] [--out runs/flora]

DIR has train-*.parquet and test-*.parquet of Shakespeare with the columns text and character_id. A method with more
than one learning rate selects it on validation data with a separate seed. Finished runs are not repeated: start again
to continue, and add seeds or methods at any time. `table.py` writes the tables from the finished runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  # after the path and the number of threads
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

from clients.world import SimulatedWorld  # noqa: E402
from experiments.flora.methods import METHODS, Method  # noqa: E402
from fedhet.config import composition  # noqa: E402
from fedhet.runs.event_log import write_atomic  # noqa: E402
from fedhet.runs.experiment import Experiment  # noqa: E402
from fedhet.runs.result import Result  # noqa: E402

CONF = Path(__file__).resolve().parent / "conf"
CHOOSING = 100
"""The seed of runs that choose a learning rate."""

EQUAL, UNEQUAL, TEN = "4,4,4,4,4,4,4,4", "32,16,8,8,4,4,2,2", "64,32,16,16,8,8,4,4,4,4"
FEW = ("FLoRA", "zero-padding", "exact-warm", "FlexLoRA")
HERE = ["fleet=homogeneous", "fleet.clients=1", "partition=iid", "work=adam", "stop.versions=1"]
"""Training at one place."""

ALWAYS = ["workers=0", "checkpoint.every_seconds=1.0e9", "budget.epochs=null"]


@dataclass(frozen=True)
class Setting:
    """One column of a table: who has which rank, how samples are spread, how many rounds of how many steps. Of text the
    model's width and blocks; only some methods if they are named."""

    name: str
    task: str
    ranks: str
    rounds: int
    steps: int
    skew: float = 0.0
    width: int = 64
    depth: int = 1
    only: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return len(set(self.ranks.split(","))) == 1

    def overrides(self, data: Path | None, choosing: bool) -> list[str]:
        """The world of this setting; rates are chosen on data that are not used for the table."""
        common = [f"budget.steps={self.steps}", f"fleet.ranks=[{self.ranks}]", f"stop.versions={self.rounds}"]
        if self.task == "digits":
            held = f"data.validation={str(choosing).lower()}"
            return [*common, "data=shifted_digits", held, "partition=dirichlet", f"partition.alpha={self.skew}"]
        seldom = f"evaluate.every_versions={max(1, self.rounds // 4)}"
        return [*common, "data=ciphered", f"data.path={data}", "partition=natural", "work.batch=8", seldom]

    @property
    def model(self) -> list[str]:
        if self.task == "digits":
            return ["model.model.hidden=[128,128]"]
        return ["model@model.model=char_decoder", f"model.model.width={self.width}", f"model.model.depth={self.depth}"]

    def base(self, out: Path) -> Path:
        """The run whose weights every other of this setting starts from."""
        return out / self.task / ("base" if self.depth == 1 else f"base-{self.depth}x{self.width}")

    @property
    def space(self) -> list[str]:
        """The largest rank there is is the space's."""
        rank = [f"space.rank={max(map(int, self.ranks.split(',')))}"]
        return rank if self.task == "digits" else [*rank, "space.targets=[q_proj,v_proj,up,down,head]"]


SETTINGS = [
    Setting("unequal-skewed", "digits", UNEQUAL, 30, 10, 0.3),
    Setting("equal-skewed", "digits", EQUAL, 30, 10, 0.3),
    Setting("unequal-even", "digits", UNEQUAL, 30, 10, 100.0),
    Setting("equal-even", "digits", EQUAL, 30, 10, 100.0),
    Setting("long", "text", TEN, 3, 12),
    Setting("short", "text", TEN, 12, 3),
    Setting("long-large", "text", TEN, 3, 12, width=128, depth=4, only=FEW),
    Setting("short-large", "text", TEN, 12, 3, width=128, depth=4, only=FEW),
]


def run(folder: Path, texts: Sequence[str]) -> Result:
    """The result in a folder, computed if it is not there yet."""
    if (folder / "result.json").is_file():
        return Result.read(folder)
    print(folder, flush=True)
    experiment = Experiment.of(composition.resolved(composition.compose(texts, CONF)))
    result = experiment.run(folder, resume=True)
    if isinstance(experiment.world, SimulatedWorld):
        write_atomic(folder / "losses.json", json.dumps(losses(experiment.world, folder)))
    return result


@torch.no_grad()
def losses(world: SimulatedWorld, folder: Path) -> list[float]:
    """The final model's mean loss on the test data of each client that has some by name, in nats."""
    owners, model = world.dataset.owner_test, world.model()
    if owners is None:
        return []
    model.module.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    data, found = world.dataset, []
    for name in np.unique(owners):
        at = torch.from_numpy(np.flatnonzero(owners == name))
        found.append(float(model.loss_of(model.predict(data.x_test[at]), data.y_test[at])))
    return found


def base(out: Path, setting: Setting, data: Path | None) -> Path:
    """The run that every other starts from: the same network, trained at one place on what is not shifted."""
    if setting.task == "digits":
        texts = ["data=shifted_digits", "data.shift=false", "model=mlp", "model.hidden=[128,128]", "budget.steps=400"]
    else:
        model = ["model=char_decoder", f"model.width={setting.width}", f"model.depth={setting.depth}", "work.batch=16"]
        texts = ["data=ciphered", "data.base=true", f"data.path={data}", *model, "budget.steps=800"]
    run(setting.base(out), [*HERE, *ALWAYS, *texts, "work.lr=0.003"])
    return setting.base(out)


def one(
    out: Path, data: Path | None, setting: Setting, name: str, method: Method, lr: float, seed: int, choosing: bool
) -> Result:
    """One run of a method."""
    texts = [
        *method.overrides, *(setting.space if method.adapters else []), "fleet=ranked", *ALWAYS,
        *setting.overrides(data, choosing), f"seed={seed}", f"work.lr={lr}",
        "model=checkpoint", f"model.path={base(out, setting, data)}", *setting.model,
    ]  # fmt: skip
    kind = "choosing" if choosing else f"seed{seed}"
    return run(out / setting.task / setting.name / name / f"lr{lr:g}-{kind}", texts)


def score(result: Result) -> float:
    """Mean accuracy of the last three evaluations."""
    return float(result["accuracy"][-3:].mean())


def chosen(out: Path, data: Path | None, setting: Setting, name: str, method: Method) -> float:
    """The learning rate with the best accuracy on held-back digits; of text the method's first."""
    if len(method.rates) == 1 or setting.task == "text":
        return method.rates[0]
    scores = {lr: score(one(out, data, setting, name, method, lr, CHOOSING, True)) for lr in method.rates}
    return max(scores, key=lambda lr: (scores[lr], -lr))


def cells(setting: Setting) -> Iterator[tuple[str, Method]]:
    """The methods a setting can be run with, those whose parts are there."""
    for name, method in METHODS.items():
        fits = method.equal if setting.equal else method.unequal
        if fits and method.there and (name in setting.only or not setting.only):
            yield name, method


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "text"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=["unequal-skewed", "equal-skewed", "long", "short"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "flora")
    given = parser.parse_args(None if arguments is None else list(arguments))
    if given.task == "text" and given.data is None:
        parser.error("text needs --data, a folder of train-*.parquet and test-*.parquet")
    for seed in given.seeds:
        for setting in [s for s in SETTINGS if s.name in given.settings and s.task == given.task]:
            for name, method in cells(setting):
                lr = chosen(given.out, given.data, setting, name, method)
                result = one(given.out, given.data, setting, name, method, lr, seed, False)
                told = f"{score(result):.3f}, loss {result['loss'][-1]:.3f}"
                print(f"{setting.name} {name} lr {lr:g} seed {seed}: {told}", flush=True)


if __name__ == "__main__":
    main()
