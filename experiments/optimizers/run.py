"""Control variates, server momentum and dynamic regularisation with two classes per client.

    python experiments/optimizers/run.py [--seeds 0 1 2] [--rounds 150] [--out runs/optimizers]
                                         [--table experiments/results/optimizers.md]

Five methods on the digits, 20 clients of two classes each, a perceptron 64-128-64-10, 20 local steps of SGD; once with
5 clients per round and once with all 20. Finished runs are not repeated: add seeds and start again. The table is
written again after every run, from all finished ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fedhet.config import composition  # noqa: E402  # after the path and the number of threads
from fedhet.runs.experiment import Experiment  # noqa: E402
from fedhet.runs.result import Result  # noqa: E402

CLIENTS, LAST, GOAL = 20, 30, 0.85
COHORTS = (5, 20)
METHODS = {
    "FedAvg": ["strategy=fedavg"],
    "FedProx (mu 0.1)": ["strategy=fedprox", "work.mu=0.1"],
    "FedAvgM (beta 0.9, server step 0.3)": ["strategy=fedavgm", "optimizer.momentum=0.9", "optimizer.lr=0.3"],
    "SCAFFOLD": ["strategy=scaffold"],
    "FedDyn (alpha 0.05)": ["strategy=feddyn", "work.alpha=0.05"],
}


def overrides(method: str, cohort: int, seed: int, rounds: int) -> list[str]:
    """What tells one run from the defaults."""
    return [
        *METHODS[method], f"seed={seed}", f"stop.versions={rounds}", "workers=0",
        "fleet=homogeneous", f"fleet.clients={CLIENTS}", f"schedule.per_round={cohort}",
        "data=digits", "partition=pathological", "partition.classes_per_client=2",
        "model=mlp", "model.hidden=[128,64]", "budget.steps=20", "budget.epochs=null", "work.lr=0.1", "work.batch=32",
    ]  # fmt: skip


def run(folder: Path, texts: Sequence[str]) -> Result:
    """The result in a folder, computed if it is not there yet."""
    if (folder / "result.json").is_file():
        return Result.read(folder)
    return Experiment.of(composition.resolved(composition.compose(texts))).run(folder)


def final(result: Result) -> float:
    """Mean test accuracy of the last `LAST` rounds."""
    return float(result["accuracy"][-LAST:].mean())


def rounds_to_goal(result: Result) -> str:
    """The first round at which the test accuracy is at least `GOAL`."""
    there = result["accuracy"] >= GOAL
    return f"{result['version'][there.argmax()]:.0f}" if there.any() else "never"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds; of one seed the value."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def cells(results: Sequence[Result]) -> list[str]:
    """The columns of one method and cohort."""
    if not results:
        return ["-", "-"]
    return [spread([final(r) for r in results]), ", ".join(rounds_to_goal(r) for r in results)]


def table(done: dict[tuple[str, int], list[Result]], rounds: int) -> str:
    """The whole results file."""
    everything = [r for results in done.values() for r in results]
    seeds = sorted({int(r.row["seed"]) for r in everything})
    versions = ", ".join(f"{k} {v}" for k, v in sorted(everything[0].row["packages"].items()) if v)
    lines = [
        "# Optimisers when every client has two classes",
        "",
        f"    python experiments/optimizers/run.py --rounds {rounds} --seeds {' '.join(map(str, seeds))}",
        "",
        f"Mean test accuracy of the last {LAST} of {rounds} rounds, mean ± standard deviation over seeds, and first",
        f"round at {GOAL:.0%}, one number a seed. Seeds: {', '.join(map(str, seeds))}; a cell with",
        "fewer numbers rests on the first of them.",
        "",
        "| method | 5 of 20 clients | rounds to 85 % | 20 of 20 clients | rounds to 85 % |",
        "|---|---|---|---|---|",
        *(f"| {m} | {' | '.join(c for k in COHORTS for c in cells(done.get((m, k), [])))} |" for m in METHODS),
        "",
        f"Versions: {versions}.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Iterable[str] | None = None) -> None:
    """Run what is missing, seed by seed, and write the table after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "optimizers")
    parser.add_argument("--table", type=Path, default=ROOT / "experiments" / "results" / "optimizers.md")
    given = parser.parse_args(None if arguments is None else list(arguments))
    done: dict[tuple[str, int], list[Result]] = {}
    for seed in given.seeds:
        for cohort in COHORTS:
            for method, (strategy, *_) in METHODS.items():
                name = f"{strategy.partition('=')[2]}-{cohort}-{given.rounds}-{seed}"
                result = run(given.out / name, overrides(method, cohort, seed, given.rounds))
                done.setdefault((method, cohort), []).append(result)
                given.table.parent.mkdir(parents=True, exist_ok=True)
                given.table.write_text(table(done, given.rounds))
                print(f"{name}: {final(result):.3f}, 85 % in round {rounds_to_goal(result)}", flush=True)


if __name__ == "__main__":
    main()
