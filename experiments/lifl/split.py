"""Robust rules by coordinate shards against flat aggregation, and planned against fixed fan-ins of the tree.

    python experiments/lifl/split.py [--repeats 3] [--updates 40] [--only multi_krum|median|nnm|fan-in ...] [--quick]

Updates of ResNet-18 size (47 MB) in the memory where they were received. For rules: flat aggregation on one and on two
threads, and by shards in one and in two running processes; arrivals (copying into shared memory) are measured apart
from the combination. For the tree: the time left after the last arrival for each fan-in, with arrivals `--gap` apart.
Every measurement is in a process of its own, the second of two equal combinations; systems take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import numpy as np  # noqa: E402  # the checkout is found first
import torch  # noqa: E402
from run import MODELS, Meter  # noqa: E402

from fedhet.bases.rule import AbstractRule  # noqa: E402
from fedhet.hierarchy.aggregation import Hierarchical  # noqa: E402
from fedhet.hierarchy.column_shards import Columns  # noqa: E402
from fedhet.hierarchy.plan import left, planned  # noqa: E402
from fedhet.hierarchy.reduction_tree import Aggregators  # noqa: E402
from fedhet.numerics.tree import FlatTree, Leaf, Schema  # noqa: E402
from fedhet.types import Budget, Job, Update  # noqa: E402
from strategies.rules.chain import Chain  # noqa: E402
from strategies.rules.krum import MultiKrum  # noqa: E402
from strategies.rules.mean import Mean  # noqa: E402
from strategies.rules.median import Median  # noqa: E402
from strategies.rules.nnm import Nnm  # noqa: E402
from strategies.rules.trimmed_mean import TrimmedMean  # noqa: E402
from strategies.spaces.full import Full  # noqa: E402

RULES: dict[str, AbstractRule] = {
    "multi_krum": MultiKrum(),
    "median": Median(),
    "nnm": Chain([Nnm()], TrimmedMean()),
}
SYSTEMS = ("flat, 1 thread", "flat, 2 threads", "columns, 1 process", "columns, 2 processes")
COUNTS = (20, 60)
VIEW: Any = SimpleNamespace()


def updates(n: int, size: int) -> list[Update]:
    """Noise, shifted: no two updates have a coordinate in common."""
    x, schema = torch.randn(size, generator=torch.Generator().manual_seed(0)), Schema((("w", Leaf((size,))),))
    return [Update(Job(i, i, 0, 0, Budget(), 0.0), FlatTree(schema, x.roll(997 * i)), 1.0) for i in range(n)]


def method(rule: Any) -> Any:
    return SimpleNamespace(rule=rule, space=Full(), layers=(), schedule=None)


def rule_costs(name: str, system: str, n: int, size: int) -> dict[str, float]:
    """Seconds and processor seconds of one combination, and of the arrivals before it."""
    rule, came, number = RULES[name], updates(n, size), int(system.split()[1])
    if system.startswith("flat"):
        for _ in range(2):
            meter = Meter([])
            rule(came, Full(), VIEW)
        return {**meter.read(), "arrivals": 0.0}
    one = Hierarchical(processes=number).begin(method(rule), n)
    assert isinstance(one, Columns)
    for _ in range(2):
        before, held = Meter([]), list[Update]()  # memory of the combination before is used again
        held = [one.arrived(update) for update in came]
        arrivals = before.read()["cpu"]
        meter = Meter([p.popen.pid for p in one.team._processes])
        one.combine(rule, held, Full(), VIEW)
        told = meter.read()
    one.close()
    return {**told, "arrivals": arrivals}


def tree_costs(fan_in: int, n: int, size: int, gap: float) -> dict[str, float]:
    """Seconds after the last arrival, and processor seconds of arrivals and combination."""
    came = updates(n, size)
    one = Hierarchical(hosts=[n], fan_in=fan_in, processes=1).begin(method(Mean()), n)
    assert isinstance(one, Aggregators)
    for _ in range(2):
        meter, held = Meter([p.popen.pid for p in one.team._processes]), list[Update]()
        for update in came:
            time.sleep(gap)
            held.append(one.arrived(update))
        began = time.perf_counter()
        one.combine(Mean(), held, Full(), VIEW)
        told = {"seconds": time.perf_counter() - began, "cpu": meter.read()["cpu"]}
    one.close()
    return told


def child(threads: int, *words: object) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", *map(str, words)]
    kept = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **kept})
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rules(names: Sequence[str], n: int, size: int, repeats: int) -> list[str]:
    """A table per rule; ratios are to flat aggregation on one thread in the same turn."""
    lines = []
    for name in names:
        runs: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
        for _ in range(repeats):
            for system in SYSTEMS:
                threads = 2 if system == "flat, 2 threads" else 1
                runs[system].append(child(threads, "rule", name, system, n, size))
        lines += [f"### {name}, {n} updates of {4 * size / 1e6:.0f} MB\n"]
        lines += [
            "| system | seconds | x flat | CPU seconds | x flat | CPU seconds of arrivals |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for system, got in runs.items():
            cells = []
            for key in ("seconds", "cpu"):
                ratio = median(a[key] / b[key] for a, b in zip(got, runs[SYSTEMS[0]], strict=True))
                cells += [f"{median(r[key] for r in got):.2f}", f"{ratio:.2f}"]
            lines.append(f"| {system} | {' | '.join(cells)} | {median(r['arrivals'] for r in got):.2f} |")
        print("\n".join(lines[-6:]), file=sys.stderr)
        lines.append("")
    return lines


def fan_ins(size: int, repeats: int, gap: float, counts: tuple[int, ...]) -> list[str]:
    """Fan-in of four, the planned one, half of it and twice it."""
    lines = [f"### Fan-ins of the tree, updates of {4 * size / 1e6:.0f} MB, {1e3 * gap:.0f} ms apart\n"]
    lines += ["| updates | fan-in | passes left | ms after the last arrival | CPU ms in all |", "|--:|--:|--:|--:|--:|"]
    for n in counts:
        best = planned(n)
        tried = sorted({4, max(2, best // 2), best, 2 * best, n})
        runs: dict[int, list[dict[str, float]]] = {k: [] for k in tried}
        for _ in range(repeats):
            for k in tried:
                runs[k].append(child(1, "tree", k, n, size, gap))
        for k, got in runs.items():
            cells = [f"{1e3 * median(r[key] for r in got):.0f}" for key in ("seconds", "cpu")]
            lines.append(f"| {n} | {k}{' (planned)' if k == best else ''} | {left(n, k)} | {' | '.join(cells)} |")
        print("\n".join(lines[-len(tried) :]), file=sys.stderr)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--gap", type=float, default=0.02, metavar="SECONDS", help="between two arrivals at the tree")
    parser.add_argument("--only", nargs="+", choices=(*RULES, "fan-in"), default=(*RULES, "fan-in"))
    parser.add_argument("--quick", action="store_true", help="a small size, once")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, *words = given.one
        if kind == "rule":
            told = rule_costs(words[0], words[1], int(words[2]), int(words[3]))
        else:
            told = tree_costs(int(words[0]), int(words[1]), int(words[2]), float(words[3]))
        print(json.dumps(told))
        return
    began = os.getloadavg()[0]
    size = 1 << 20 if given.quick else MODELS["ResNet-18"]
    repeats, lines = 1 if given.quick else given.repeats, list[str]()
    lines += rules([name for name in RULES if name in given.only], given.updates, size, repeats)
    if "fan-in" in given.only:
        lines += fan_ins(size, repeats, given.gap, COUNTS[:1] if given.quick else COUNTS)
    lines.append(
        f"Medians of {repeats} turns; {os.cpu_count()} cores, {platform.machine()}, numpy {np.__version__}, torch "
        f"{version('torch')}; load average {began:.1f} before and {os.getloadavg()[0]:.1f} after."
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
