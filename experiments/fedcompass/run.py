"""FedCompass against other schedules, over the grid of its paper: on which fleets it is faster.

    python experiments/fedcompass/run.py PART ... --data DIR [--seeds 0 1 2] [--clients 5 10 20]
                                        [--out runs/fedcompass] [--until HH:MM]

PART is `search` (a learning rate per method, on 5 clients of exponential speeds and a seed of its own), `grid` (all
18 cells), `variants` (FedCompass with other options, on the exponential cells), `cifar10` (a perceptron, 10 clients),
`cnn` (the paper's network with its Adam and 0.003, on the exponential cells), or `whole:NAME,NAME` (methods or variants
on all cells). DIR has the folders mnist-10k and cifar10. Finished runs are not repeated; seeds are in the outer loop,
so that an interrupted study has the same number of runs in all cells; `table.py` writes the table.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.fedcompass.study import (  # noqa: E402  # after the path and the number of threads
    METHODS,
    RATES,
    VARIANTS,
    Bench,
    area,
    cells,
    cifar10,
    cnn,
    mnist,
    record,
)

SEARCH_SEEDS = (100,)
PAPERS_RATE = 0.003
Task = tuple[str, list[str], tuple[int, str, str], float]


def searched(bench: Bench, out: Path, methods: Iterable[str], clients: int, seeds: Iterable[int]) -> dict[str, float]:
    """The learning rate of the largest mean accuracy over time, per method."""
    seeds, best = tuple(seeds), {}
    for method in methods:
        scores = {
            rate: sum(
                area(record(bench, f"search {method}", METHODS[method], cell, rate, seed, out))
                for cell in cells((clients,), ("exponential",))
                for seed in seeds
            )
            for rate in RATES
        }
        best[method] = max(scores, key=lambda rate: scores[rate])
        print(f"{bench.name} {method}: {best[method]} of {scores}", flush=True)
    return best


def tasks(part: str, rates: dict[str, float], clients: tuple[int, ...]) -> Iterator[Task]:
    """The runs of one part with one seed."""
    if part == "grid":
        for cell in cells(clients):
            for method, texts in METHODS.items():
                yield method, texts, cell, rates[method]
    elif part == "variants":
        for cell in cells(clients, ("exponential",)):
            for name, texts in VARIANTS.items():
                yield name, texts, cell, rates["FedCompass"]
    elif part.startswith("whole:"):
        for cell in cells(clients):
            for name in part.removeprefix("whole:").split(","):
                yield name, (METHODS | VARIANTS)[name], cell, rates.get(name, rates["FedCompass"])
    elif part == "cifar10":
        for cell in cells((10,)):
            for method, texts in METHODS.items():
                yield method, texts, cell, rates[method]
    elif part == "cnn":
        for cell in cells(clients, ("exponential",)):
            for method, texts in METHODS.items():
                yield method, texts, cell, PAPERS_RATE
    else:
        raise SystemExit(f"{part!r} is no part: use search, grid, variants, cifar10, cnn or whole:NAME")


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing of the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fedcompass")
    parser.add_argument("--until", default="", help="wall clock after which no run is started")
    given = parser.parse_args(None if arguments is None else list(arguments))
    given.out.mkdir(parents=True, exist_ok=True)
    rates = searched(mnist(given.data), given.out, METHODS, 5, SEARCH_SEEDS)
    for part in (p for p in given.parts if p != "search"):
        bench = {"cifar10": cifar10, "cnn": cnn}.get(part, mnist)(given.data)
        if part == "cifar10":
            rates = searched(bench, given.out, METHODS, 5, SEARCH_SEEDS)
        for seed in given.seeds:
            for name, texts, cell, rate in tasks(part, rates, tuple(given.clients)):
                if given.until and time.strftime("%H:%M") >= given.until:
                    print(f"stopped before {name} {cell} {seed}: it is {given.until}", flush=True)
                    return
                run = record(bench, name, texts, cell, rate, seed, given.out)
                print(f"{part} {seed} {name} {cell}: top {max(run['accuracy']):.3f} in {run['wall_seconds']:.1f} s",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
