"""Methods for late updates when slow clients have a class of their own.

    python experiments/staleness/run.py --data DIR [--stale 40 20 10] [--seeds 0 1 2] [--rounds 100] [--out DIR]

DIR has MNIST as Parquet files. One JSON file per run under --out; finished runs are not repeated. `table.py` writes the
results page from them. See README.md for the setting.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the number of threads

from clients.models.vision import lenet  # noqa: E402
from experiments.staleness.world import CLASSES, PER_ROUND, SIDE, STEPS, Method, Rounds, World  # noqa: E402
from strategies.privacy.noise import Noise  # noqa: E402
from strategies.staleness.discount import Exponential  # noqa: E402
from strategies.staleness.inversion import Inversion  # noqa: E402
from strategies.staleness.inversion_local import Procedure  # noqa: E402
from strategies.staleness.inversion_search import Search  # noqa: E402
from strategies.staleness.inversion_unique import Unique  # noqa: E402
from strategies.staleness.taylor import Taylor  # noqa: E402

LR, DELAY = 0.1, 40


def inversion(world: World, images: int = 24, cold: int = 60, warm: int = 25) -> Inversion:
    """The layer as it is used here; `cold` iterations the first time, `warm` from the client's last result."""
    work = {"_target_": "clients.work.sgd.Sgd", "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None}
    procedure = Procedure({**work, "lr": LR, "lr_decay": 1.0, "batch": world.work.batch})
    return Inversion(
        lenet, procedure, (1, SIDE, SIDE), CLASSES, images=images, iterations=cold, warm_iterations=warm,
        search=Search(lr=0.2), unique=Unique(peers=0),
    )  # fmt: skip


METHODS: dict[str, Callable[[World], Method]] = {
    "fresh": lambda world: Method(fresh=True),
    "inversion": lambda world: Method(inversion(world)),
    "direct": lambda world: Method(),
    "discount": lambda world: Method(Exponential(20.0)),
    "first order": lambda world: Method(Taylor(lam=4.0 * STEPS * LR, lr=LR)),
    "prediction": lambda world: Method(predict=1000),
    "prediction, one cycle": lambda world: Method(predict=PER_ROUND),
    "tiers": lambda world: Method(tiers=True),
    "inversion, 40 images": lambda world: Method(inversion(world, 40, 100, 30)),
    "inversion, unique only": lambda world: Method(replace(inversion(world), unique=Unique())),
    "inversion, largest 5 %": lambda world: Method(replace(inversion(world), share=0.05)),
    "inversion, noise of 1 rms": lambda world: Method(inversion(world), noise=Noise(1.0, world.seed)),
}
"""`fresh` is the bound: nobody is late."""


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing, staleness by staleness and seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's Parquet files")
    parser.add_argument("--stale", type=int, nargs="+", default=[40, 20, 10], help="rounds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS)[:-4], choices=list(METHODS))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "staleness")
    given = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    started: dict[int, Rounds] = {}
    for stale in given.stale:
        for seed in given.seeds:
            for name in given.methods:
                late = 0 if name == "fresh" else stale
                path = (
                    given.out
                    / f"{name.replace(' ', '-').replace(',', '').replace('-%', '')}-{late}-{given.rounds}-{seed}.json"
                )
                if path.is_file():
                    continue
                if seed not in started:
                    started[seed] = first = Rounds(
                        World(given.data, seed, LR), Method(fresh=True), max(given.stale), DELAY
                    )
                    first.run(DELAY)
                began = time.process_time()
                run = started[seed].branch(METHODS[name](started[seed].world), late or stale)
                run.run(given.rounds)
                row = {"method": name, "stale": late, "seed": seed, "rounds": given.rounds, "delay": DELAY}
                row |= {"rows": run.rows, "server_seconds": run.server_seconds, "notes": run.view.notes}
                row |= {"seconds": time.process_time() - began, "slow": len(run.world.slow), "torch": torch.__version__}
                path.write_text(json.dumps(row) + "\n")
                print(
                    f"{path.stem}: {run.rows[-1]}, {row['seconds']:.0f} s, server {run.server_seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
