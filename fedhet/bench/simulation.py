"""Simulated client tasks per second, compared with a hand-written loop on the same data with the same steps.

W1: a perceptron 784-200-200-10, 100 clients of 100 samples, 10 a round, one epoch in batches of 10, plain SGD.
W3: softmax regression on 784 inputs, one step of one task, 100 sampled of the registered clients.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedhet.config import composition, factory
from fedhet.runs.experiment import Experiment

Load = Mapping[str, Any]

W1: Load = {"clients": 100, "per_round": 10, "samples": 100, "batch": 10, "model": "mlp", "rounds": 40}
W3: Load = {"clients": 1000, "per_round": 100, "samples": 32, "batch": 32, "model": "softmax", "rounds": 40}


def overrides(w: Load, workers: int) -> list[str]:
    """The configuration of a load, on any number of worker processes."""
    return [
        "fleet=homogeneous", f"fleet.clients={w['clients']}", "fleet.jitter_cv=0", f"workers={workers}",
        "data=synthetic", "data.samples=10000", "partition=per_client", f"partition.per_client={w['samples']}",
        f"model={w['model']}", f"work.batch={w['batch']}", "work.lr=0.05", f"schedule.per_round={w['per_round']}",
        f"stop.versions={w['rounds']}", "evaluate.every_versions=1000000", "checkpoint.every_seconds=100000",
    ]  # fmt: skip


def ours(w: Load, workers: int) -> dict[str, float]:
    """Tasks per second of the engine after a warm-up ("rate"), and its peak memory in bytes ("rss")."""
    marks: list[tuple[float, int]] = []
    experiment = Experiment.of(composition.resolved(composition.compose(overrides(w, workers))))
    with tempfile.TemporaryDirectory() as folder:
        result = experiment.run(
            Path(folder) / "run", progress=lambda row: marks.append((time.perf_counter(), row["tasks"]))
        )
    first = next(m for m in marks if m[1] >= 2 * w["per_round"])
    last = next(m for m in marks if m[1] == marks[-1][1])  # the final evaluation comes after it
    rate = (last[1] - first[1]) / (last[0] - first[0])
    return {"rate": rate, "rss": result.row["peak_rss_bytes"]}


def hand(w: Load) -> dict[str, float]:
    """The hand-written loop: a model, torch.optim.SGD, clients one after the other, a running weighted sum."""
    world: Any = factory.world(composition.resolved(composition.compose(overrides(w, 0))), w["clients"])
    model = world.model().module
    torch.set_num_threads(1)
    loss_of = torch.nn.functional.cross_entropy
    x_all, y_all = world.dataset.x_train, world.dataset.y_train
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    done, began = 0, 0.0
    for round_ in range(w["rounds"]):
        if round_ == 2:
            began, done = time.perf_counter(), 0
        total = {k: torch.zeros_like(v) for k, v in state.items()}
        for client in torch.randperm(w["clients"], generator=generator)[: w["per_round"]].tolist():
            index = torch.from_numpy(world.partition.indices(client).astype("int64"))
            x, y = x_all[index], y_all[index]
            model.load_state_dict(state)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            for part in torch.split(torch.randperm(len(x), generator=generator), w["batch"]):
                optimizer.zero_grad()
                loss_of(model(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for k, v in model.state_dict().items():
                total[k].add_(v, alpha=1 / w["per_round"])
            done += 1
        state = total
    return {"rate": done / (time.perf_counter() - began), "rss": peak()}


def peak() -> float:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
