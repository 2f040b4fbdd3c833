"""Robust rules under attack, with homogeneous and heterogeneous clients: accuracy, and the loss without an attack.

    python experiments/byzantine/run.py --data DIR [--seeds 0 1 2] [--parts small fewer ...] [--out runs/byzantine]

DIR has the parquet files of MNIST or a part of it. First every rule gets a step size per partition (the better worst
case over two attacks, on a separate seed). Finished runs are not repeated: start again after an interruption, or with
more seeds. `table.py` writes the results from the finished runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from grid import ROUNDS, STEPS, Cell, cells, chosen, tuning  # noqa: E402

from fedhet.config import composition, factory  # noqa: E402
from fedhet.engine.stopping import Diverged  # noqa: E402
from fedhet.numerics import tree  # noqa: E402  # after the path and the number of threads
from fedhet.runs.experiment import Experiment  # noqa: E402
from fedhet.testing.quadratic import Rounds  # noqa: E402

PARTS = ("small", "async", "large", "fewer", "optimised")
CHANCE = 0.1
"""Accuracy of a model that is lost."""


def run(out: Path, cell: Cell, data: str) -> dict[str, float]:
    """The score of a cell: {"final", "diverged"}, computed if it is not there yet."""
    path = out / f"{cell.name}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    composed = _composed(*cell.words(), f"data.path={data}")
    composed.seed = cell.seed
    try:
        if cell.schedule:
            accuracy = Experiment.of(composition.resolved(composed)).run(out / "folders" / cell.name)["accuracy"][-1]
        else:
            accuracy = rounds(composition.resolved(composed), cell)
        score = {"final": float(accuracy), "diverged": 0.0}
    except Diverged:
        score = {"final": CHANCE, "diverged": 1.0}
    path.write_text(json.dumps(score))
    return score


def rounds(cfg: Mapping[str, Any], cell: Cell) -> float:
    """A synchronous cell without clock, gate and record: the bits of a whole run in half its time. Raises Diverged."""
    method, world = factory.method(cfg), factory.world(cfg, cell.clients)
    state = Rounds(method.work, method.space, method.rule, world, steps=STEPS).run(ROUNDS)
    if not math.isfinite(tree.squared_norm(state)):
        raise Diverged(cell.name)
    model = world.model()
    method.space.restore(model, state)
    return world.evaluate(model).accuracy


@cache
def _composed(*words: str) -> DictConfig:
    """The same for every seed, and a third of a short run's time."""
    return composition.compose(words)


def tuned(out: Path, data: str) -> dict[tuple[str, str], float]:
    """The step size of every (rule, mix): best worst case over the tuning attacks, the smaller one if equal."""
    return chosen({c.name: run(out, c, data)["final"] for c in tuning()})


def main() -> None:
    """Tune, then run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of parquet files with images and labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "byzantine")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    rates = tuned(given.out, given.data)
    for cell in cells(given.seeds, rates, given.parts):
        score = run(given.out, cell, given.data)
        print(f"{cell.name}: {score['final']:.3f}", flush=True)


if __name__ == "__main__":
    main()
