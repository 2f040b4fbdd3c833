"""The cells, methods and variants of the study, and one run of it as a small record.

A cell is a number of clients, a distribution of speeds and a partition. Every method gets the same cell from the same
seed: data, speeds, jitter and mini-batches are equal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fedhet.config import composition, factory
from fedhet.runs.event_log import read_rows, write_atomic
from fedhet.runs.experiment import Experiment

FLEETS = ("homogeneous", "normal", "exponential")
PARTITIONS = ("class_partition", "dual_dirichlet")
CLIENTS = (5, 10, 20)
RATES = (0.03, 0.1, 0.3)
"""Local learning rates that every method chooses from."""

COMPASS = ["strategy=fedcompass", "schedule.q_min=10", "schedule.q_max=50"]
METHODS: dict[str, list[str]] = {
    "FedAvg": ["strategy=fedavg"],
    "FedAsync": ["strategy=fedasync"],
    "FedBuff": ["strategy=fedbuff"],
    "FedFix": ["strategy=fedfix"],
    "FedCompass": COMPASS,
}
ONLINE = ["staleness=importance", "staleness.max_factor=4.0", "staleness.shrinkage=3.0"]
VARIANTS: dict[str, list[str]] = {
    "strict join": [*COMPASS, "schedule.join_slack=1.0"],
    "lambda 1.0": [*COMPASS, "schedule.latency_factor=1.0"],
    "lambda 1.5": [*COMPASS, "schedule.latency_factor=1.5"],
    "lambda 2.0": [*COMPASS, "schedule.latency_factor=2.0"],
    "no discount": [*COMPASS, "staleness=none"],
    "normalised": ["strategy=fedcompass_normalised", *COMPASS[1:]],
    "twice the server's step": [*COMPASS, "optimizer.lr=1.8"],
    "unbiased": [*COMPASS, *ONLINE],
}


@dataclass(frozen=True)
class Bench:
    """A data set with its model, and how long a run of it lasts in seconds of virtual time."""

    name: str
    data: str
    folder: Path
    model: Sequence[str]
    seconds: float
    work: Sequence[str] = ("work=sgd",)
    steps: int = 50

    def common(self, clients: int, fleet: str, partition: str) -> list[str]:
        """What the runs of one cell share. Batches are smaller with more clients: a task of 50 steps is one epoch over
        an even share of 8,000 samples whatever their number."""
        return [
            "workers=0", "stop.versions=null", f"stop.seconds={self.seconds}", f"data={self.data}",
            f"data.path={self.folder.resolve()}", f"partition={partition}", f"fleet={fleet}",
            f"fleet.clients={clients}", "fleet.sec_per_step=0.6", *self.model, *self.work,
            f"work.batch={160 // clients}", f"budget.steps={self.steps}", "budget.epochs=null",
            "evaluate.every_seconds=6.0", "checkpoint.every_seconds=1e9",
        ]  # fmt: skip


def mnist(data: Path) -> Bench:
    """The 8,000 + 2,000 images and a perceptron 784-100-10."""
    return Bench("mnist", "mnist", data / "mnist-10k", ("model=mlp", "model.hidden=[100]"), 400.0)


def cifar10(data: Path) -> Bench:
    """All of CIFAR-10 and a perceptron 3072-100-10, for half as long."""
    return Bench("cifar10", "cifar10", data / "cifar10", ("model=mlp", "model.hidden=[100]"), 200.0)


def cnn(data: Path) -> Bench:
    """The paper's own network and optimizer on the 8,000 images, with half the steps a task and for a fifth as long:
    a step costs fifty times as much as the perceptron's."""
    return Bench("cnn", "mnist", data / "mnist-10k", ("model=cnn_mnist",), 80.0, ("work=adam",), 25)


def cells(clients: Sequence[int] = CLIENTS, fleets: Sequence[str] = FLEETS) -> Iterator[tuple[int, str, str]]:
    """Every (clients, fleet, partition)."""
    return ((m, f, p) for m in clients for f in fleets for p in PARTITIONS)


def record(
    bench: Bench, name: str, texts: Sequence[str], cell: tuple[int, str, str], rate: float, seed: int, out: Path
) -> dict[str, Any]:
    """One finished run as a plain mapping; computed if its file is not there yet."""
    clients, fleet, partition = cell
    label = f"{bench.name}-{name}-{clients}-{fleet}-{partition}-{rate:g}-{seed}".replace(" ", "_").replace("'", "")
    path = out / f"{label}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    texts = [*bench.common(*cell), *texts]
    if "schedule.q_max=50" in texts:
        texts += [f"schedule.q_min={bench.steps // 5}", f"schedule.q_max={bench.steps}"]
    if "strategy=fedbuff" in texts:
        texts.append(f"schedule.size={5 if clients >= 20 else 3}")
    cfg = json.loads(composed(*texts)) | {"seed": seed}
    cfg["work"]["lr"] = rate
    if "strategy=fedfix" in texts:
        cfg["schedule"]["window_seconds"] = cfg["staleness"]["window_seconds"] = window(cfg, bench.steps)
    folder = out / f"{label}.run"
    shutil.rmtree(folder, ignore_errors=True)
    result = Experiment.of(cfg).run(folder)
    kept = {
        "name": name, "clients": clients, "fleet": fleet, "partition": partition, "rate": rate, "seed": seed,
        "t": result["t"].round(3).tolist(), "accuracy": result["accuracy"].round(5).tolist(),
        "seconds": bench.seconds, "wall_seconds": result.row["wall_seconds"], "packages": result.row["packages"],
        **figures(read_rows(folder / "events.jsonl"), initial="schedule.initial_mode=group" not in texts),
    }  # fmt: skip
    write_atomic(path, json.dumps(kept))
    shutil.rmtree(folder)
    return kept


@cache
def composed(*texts: str) -> str:
    """The resolved configuration of overrides, as JSON."""
    return json.dumps(composition.resolved(composition.compose(texts)))


def window(cfg: Mapping[str, Any], steps: int) -> float:
    """FedFix's window: half of the slowest client's expected task, with a tenth of room for jitter."""
    return float(0.55 * steps * np.max(np.asarray(factory.fleet(cfg).column("sec_per_step"))))


def figures(rows: Sequence[Mapping[str, Any]], *, initial: bool) -> dict[str, float]:
    """Steps done, tasks, versions, mean staleness of an update and mean number of updates a version.

    With `initial`, a client's very first update is left out of both means: groups come after it.
    """
    steps = {row["job"]: row["steps"] for row in rows if row["event"] == "assign"}
    arrived = [row["job"] for row in rows if row["event"] == "arrived"]
    staleness, sizes, seen = [], [], set[int]()
    for row in (r for r in rows if r["event"] == "combined"):
        old = [u for c, u in zip(row["clients"], row["staleness"], strict=True) if c in seen or not initial]
        seen.update(row["clients"])
        staleness += old
        sizes += [len(old)] if old else []
    return {
        "steps": sum(steps[job] for job in arrived),
        "tasks": len(arrived),
        "versions": sum(row["event"] == "combined" for row in rows),
        "staleness": float(np.mean(staleness)) if staleness else 0.0,
        "size": float(np.mean(sizes)) if sizes else 0.0,
    }


def area(run: Mapping[str, Any]) -> float:
    """Mean test accuracy over the time of a run, the last value kept until its end: what learning rates compete on."""
    t = np.array([*run["t"], run["seconds"]])
    return float((np.diff(t) * np.array(run["accuracy"])).sum() / (t[-1] - t[0]))


def time_to(run: Mapping[str, Any], goal: float) -> float:
    """Virtual seconds until the accuracy is first at least `goal`; infinity if it never is."""
    return next((t for t, a in zip(run["t"], run["accuracy"], strict=True) if a >= goal), float("inf"))
