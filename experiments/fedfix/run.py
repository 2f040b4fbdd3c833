"""FedFix: whether importance weights remove the bias by speed, and whether fixed windows converge more steadily.

    python experiments/fedfix/run.py --data DIR [--seeds 0 1 2] [--out runs/fedfix]
                                     [--table experiments/results/fedfix.md]

Ten clients of speeds F-80: from 1 s to 0.2 s per task. First on quadratics whose optimum is known, then on MNIST with
one class per client and softmax regression, where bias against a client shows as low accuracy of its class. DIR has the
folder mnist-10k. Finished runs are not repeated; the table is written again after every run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file  # noqa: E402  # after the number of threads

from clients.fleet.laws import LinearGrid  # noqa: E402
from clients.work.sgd import Sgd  # noqa: E402
from fedhet import Limits  # noqa: E402
from fedhet.config import composition, factory  # noqa: E402
from fedhet.model.flat_model import Model  # noqa: E402
from fedhet.runs.event_log import write_atomic  # noqa: E402
from fedhet.runs.experiment import Experiment  # noqa: E402
from fedhet.testing.quadratic import QuadraticWorld  # noqa: E402
from fedhet.world import Scores  # noqa: E402

COUNT = 10
TAUS = [1 - 0.8 * i / (COUNT - 1) for i in range(COUNT)]
RATES = (0.1, 0.3)
MNIST_SECONDS, LAST = 20.0, 0.2
POPULATION, EVEN = ["rule=mean", "rule.over=population"], ["rule=mean", "rule.over=count", "rule.uniform=true"]


def fedfix(window: float, weighted: bool) -> list[str]:
    """Windows of a length; identical weights are the clients' shares, p_i."""
    given = ["schedule=fedfix", f"schedule.window_seconds={window}", *POPULATION]
    return (
        [*given, "staleness=importance", "staleness.scheme=fedfix", f"staleness.window_seconds={window}"]
        if weighted
        else given
    )


def buffered(size: int, scheme: str | None) -> list[str]:
    """Every `size` answers a version; identical weights are 1 / size."""
    given = ["schedule=fedbuff", f"schedule.size={size}"]
    if scheme is None:
        return [*given, *EVEN]
    more = [f"staleness.size={size}"] if scheme == "fedbuff" else []
    return [*given, *POPULATION, "staleness=importance", f"staleness.scheme={scheme}", *more]


SCHEMES: dict[str, list[str]] = {
    "FedAvg": ["schedule=sync", *POPULATION],
    "asynchronous, weighted": buffered(1, "asynchronous"),
    "asynchronous, identical": buffered(1, None),
    "FedFix 0.2, weighted": fedfix(0.2, True),
    "FedFix 0.5, weighted": fedfix(0.5, True),
    "FedFix 0.5, identical": fedfix(0.5, False),
    "FedFix 0.8, weighted": fedfix(0.8, True),
    "FedBuff 3, weighted": buffered(3, "fedbuff"),
    "FedBuff 3, identical": buffered(3, None),
}
PACE = {
    "FedAvg": 1.0,
    "FedFix 0.2": 5.0,
    "FedFix 0.5": 2.0,
    "FedFix 0.8": 1.25,
    "asynchronous": 21.28,
    "FedBuff 3": 7.09,
}
"""Versions a second, about."""


@dataclass
class Line:
    """The quadratic world of the clients' optima 0, 1, ..., 9, whose "loss" is where the model is."""

    inner: QuadraticWorld
    clients: int = COUNT

    def examples(self) -> np.ndarray:
        return self.inner.examples()

    def model(self) -> Model:
        return self.inner.model()

    def shard(self, client: int, turn: int) -> Any:
        return self.inner.shard(client, turn)

    def flops(self) -> float:
        return self.inner.flops()

    def describe(self) -> Mapping[str, Any]:
        return self.inner.describe()

    def evaluate(self, model: Model) -> Scores:
        return Scores(0.0, float(model.params[0]), np.zeros(COUNT))


def kept(path: Path, make: Any) -> dict[str, Any]:
    """What is in a file, or what `make(folder)` gives, put there."""
    if not path.is_file():
        write_atomic(path, json.dumps(make(path.with_suffix(".run"))))
    return dict(json.loads(path.read_text()))


def quadratic(scheme: str, lr: float, folder: Path) -> dict[str, Any]:
    """Mean and standard deviation of the model over the second half of a run from 0, of about 12 / lr versions."""
    pace = next(v for k, v in PACE.items() if scheme.startswith(k))
    cfg = composition.resolved(
        composition.compose([*SCHEMES[scheme], "budget.steps=1", "budget.epochs=null", f"work.lr={lr}"])
    )
    method = factory.method(cfg)
    assert isinstance(method.work, Sgd)
    world = Line(QuadraticWorld([1.0] * COUNT, np.arange(float(COUNT))))
    clients = LinearGrid(clients=COUNT, sec_per_step=1.0, jitter_cv=0.0, x=0.8).build(0).with_examples(world.examples())
    limits = Limits(seconds=12 / lr / min(pace, 7.0))
    result = Experiment(method, clients, world, limits, checkpoint_every=1e9).run(folder)
    late = result["loss"][result["t"] > limits.seconds / 2]
    return {"mean": float(late.mean()), "std": float(late.std()), "seconds": limits.seconds}


def mnist(scheme: str, lr: float, seed: int, data: Path, folder: Path) -> dict[str, Any]:
    """One run: the curve, and the final model's accuracy on the class of each client, slowest first."""
    cfg = composition.resolved(composition.compose([
        *SCHEMES[scheme], f"seed={seed}", "workers=0", "data=mnist", f"data.path={(data / 'mnist-10k').resolve()}",
        "partition=pathological", "partition.classes_per_client=1", "model=softmax", "fleet=linear_grid",
        f"fleet.clients={COUNT}", "fleet.sec_per_step=0.1", "fleet.jitter_cv=0.0", "fleet.x=0.8", "budget.steps=10",
        "budget.epochs=null", f"work.lr={lr}", "work.batch=64", "stop.versions=null", f"stop.seconds={MNIST_SECONDS}",
        "evaluate.every_seconds=0.5", "checkpoint.every_seconds=1e9",
    ]))  # fmt: skip
    experiment = Experiment.of(cfg)
    result = experiment.run(folder)
    model = experiment.world.model()
    model.module.load_state_dict(load_file(folder / "model.safetensors"))
    return {
        "t": result["t"].tolist(), "accuracy": result["accuracy"].tolist(), "loss": result["loss"].tolist(),
        "clients": experiment.world.evaluate(model).clients.tolist(), "packages": result.row["packages"],
    }  # fmt: skip


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation; of one value the value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def swing(run: Mapping[str, Any]) -> float:
    """Standard deviation of the accuracy over the last fifth of a run, in points."""
    t, a = np.array(run["t"]), np.array(run["accuracy"])
    return float(100 * a[t > (1 - LAST) * MNIST_SECONDS].std())


def first(run: Mapping[str, Any], goal: float) -> float:
    """Seconds to the goal; infinity if it is never reached."""
    return next((t for t, a in zip(run["t"], run["accuracy"], strict=True) if a >= goal), float("inf"))


def table(
    line: Mapping[str, Any], real: Mapping[str, Mapping[float, Sequence[Mapping[str, Any]]]], lr: float, seeds: str
) -> str:
    """The whole results file."""
    lines = [
        "# FedFix: windows, and weights that undo unequal speeds",
        "",
        f"    python experiments/fedfix/run.py --data DIR --seeds {seeds}",
        "",
        "Setting and question: [experiments/fedfix](../fedfix/README.md).",
        "",
        f"## Quadratics, one step of {lr:g} a task",
        "",
        "Mean and standard deviation of the model over the second half of a run; the optimum of the sum is 4.5.",
        "",
        "| scheme | mean | std | what identical weights aim at |",
        "|---|---|---|---|",
    ]
    rates = {"asynchronous, identical": [1 / t for t in TAUS], "FedBuff 3, identical": [1 / t for t in TAUS]}
    rates["FedFix 0.5, identical"] = [1 / max(1, int(np.ceil(t / 0.5 - 1e-9))) for t in TAUS]
    for name, found in line.items():
        aim = f"{np.dot(rates[name], range(COUNT)) / sum(rates[name]):.4f}" if name in rates else ""
        lines.append(f"| {name} | {found['mean']:.4f} | {found['std']:.4f} | {aim} |")
    lines += [
        "",
        f"## MNIST, one class a client, softmax regression, {MNIST_SECONDS:g} s of virtual time",
        "",
        "Each scheme at the learning rate of its lowest final loss. Slow and fast: accuracy of the final model on the",
        "classes of the three slowest and the three fastest clients. Swing: standard deviation of the accuracy in the",
        "last fifth of the time.",
        "",
        "| scheme | lr | seeds | final loss | final accuracy, % | slow, % | fast, % | swing, points | s to 75 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, by_rate in real.items():
        best = min(by_rate, key=lambda rate: statistics.mean(r["loss"][-1] for r in by_rate[rate]))
        runs = by_rate[best]
        there = statistics.median(first(r, 0.75) for r in runs)
        columns = [
            spread([r["loss"][-1] for r in runs], 3),
            spread([100 * r["accuracy"][-1] for r in runs], 1),
            spread([100 * float(np.mean(r["clients"][:3])) for r in runs], 1),
            spread([100 * float(np.mean(r["clients"][-3:])) for r in runs], 1),
            spread([swing(r) for r in runs], 2),
            f"{there:.1f}" if np.isfinite(there) else "never",
        ]
        lines.append(f"| {name} | {best:g} | {len(runs)} | " + " | ".join(columns) + " |")
    packages = next(r["packages"] for by_rate in real.values() for runs in by_rate.values() for r in runs)
    return "\n".join(
        [*lines, "", "Versions: " + ", ".join(f"{k} {v}" for k, v in sorted(packages.items()) if v) + ".", ""]
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing, and write the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fedfix")
    parser.add_argument("--table", type=Path, default=ROOT / "experiments" / "results" / "fedfix.md")
    given = parser.parse_args(None if arguments is None else list(arguments))
    given.out.mkdir(parents=True, exist_ok=True)
    lr = 0.03
    line = {}
    for name in SCHEMES:
        path = given.out / f"line-{name}-{lr:g}.json".replace(" ", "_").replace(",", "")
        line[name] = kept(path, lambda folder, name=name: quadratic(name, lr, folder))
        print(f"{name}: {line[name]['mean']:.4f} ({line[name]['std']:.4f})", flush=True)
    real: dict[str, dict[float, list[dict[str, Any]]]] = {name: {rate: [] for rate in RATES} for name in SCHEMES}
    for seed in given.seeds:
        for rate in RATES:
            for name in SCHEMES:
                path = given.out / f"mnist-{name}-{rate:g}-{seed}.json".replace(" ", "_").replace(",", "")
                run = kept(path, lambda folder, n=name, r=rate, s=seed: mnist(n, r, s, given.data, folder))
                real[name][rate].append(run)
                print(f"{seed} {name} {rate:g}: loss {run['loss'][-1]:.3f}", flush=True)
        given.table.parent.mkdir(parents=True, exist_ok=True)
        given.table.write_text(table(line, real, lr, " ".join(map(str, given.seeds))))


if __name__ == "__main__":
    main()
