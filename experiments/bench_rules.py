# ruff: noqa: E402  # threads are fixed and the checkout is found before anything is imported
"""Benchmark of aggregation rules: processor time and extra memory, against reading the inputs, Flower and byzfl.

    python experiments/bench_rules.py [--quick] [--only RULE ...] [--repeats 5] [--no-rivals]

One thread. Inputs are n float32 updates of d numbers, f = n / 5. The lower bound is one pass over them (a sum per
update). Times are medians of processor time, which is less affected by other load than wall time. Reading, the Gram
matrix and a rule take turns, and ratios are within a turn. Memory is the peak above the inputs, with the result.
Flower's times include unpacking its messages, as its strategies do; byzfl gets one (n, d) matrix. byzfl is compared if
it can be imported.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from fedhet import native
from fedhet.bench.turns import Cost, in_turns
from fedhet.numerics import tree
from fedhet.numerics.rng import stream
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.types import Budget, Job, Tree, Update
from strategies.rules.arc import Arc
from strategies.rules.bucketing import Bucketing
from strategies.rules.bulyan import Bulyan
from strategies.rules.caf import Caf
from strategies.rules.centred_clipping import CentredClipping
from strategies.rules.chain import Chain
from strategies.rules.flag import Flag
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.krum import Krum, MultiKrum
from strategies.rules.mda import MinimumDiameter
from strategies.rules.meamed import Meamed
from strategies.rules.mean import Mean
from strategies.rules.median import Median
from strategies.rules.monna import Monna
from strategies.rules.nnm import Nnm
from strategies.rules.phocas import Phocas
from strategies.rules.smea import Smea
from strategies.rules.trimmed_mean import TrimmedMean

FLOOR, GRAM = "reading once", "Gram matrix"
SIZES, QUICK = ((20, 10**6), (50, 10**7)), ((20, 10**5),)
PATIENCE = 60.0
"""Seconds a slow rival gets; it then has fewer runs, and the table says how many."""

LAYERS = 20
"""Tensors a model of d numbers is divided into, for Flower's records."""


class Dense:
    """The geometry of plain vectors."""

    gram = staticmethod(tree.gram)

    @staticmethod
    def combine(deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None) -> Tree:
        return tree.weighted_sum(deltas, tree.scaled(coefficients, scales))


class Draws:
    """A view for rules that draw random numbers."""

    @staticmethod
    def rng(purpose: str) -> np.random.Generator:
        return stream(0, purpose)


@dataclass
class Rival:
    """Medians: seconds of processor, seconds of the clock, bytes at the peak. `runs` they are the medians of."""

    cpu: float
    wall: float
    memory: float
    runs: int


def rules(f: int) -> dict[str, Any]:
    """The rules by name, linear ones first."""
    return {
        "mean": Mean(),
        "Krum": Krum(f=f),
        "Multi-Krum": MultiKrum(f=f),
        "geometric median": GeometricMedian(),
        "centred clipping": CentredClipping(),
        "CAF": Caf(f=f),
        "MoNNA": Monna(f=f),
        "Flag": Flag(),
        "Flag, pairs": Flag(lam=10.0),
        "MDA": MinimumDiameter(f=f),
        "SMEA": Smea(f=f),
        "NNM + Krum": Chain([Nnm(f)], Krum(f=f)),
        "bucketing + geometric median": Chain([Bucketing(2)], GeometricMedian()),
        "ARC + NNM + geometric median": Chain([Arc(f), Nnm(f)], GeometricMedian()),
        "median": Median(),
        "trimmed mean": TrimmedMean(f=f),
        "MeaMed": Meamed(f=f),
        "Phocas": Phocas(f=f),
        "Bulyan": Bulyan(f=f),
        "ARC + NNM + trimmed mean": Chain([Arc(f), Nnm(f)], TrimmedMean(f=f)),
    }


def measure(
    call: Callable[..., Any], repeats: int, prepare: Callable[[], Any] | None = None, patience: float = math.inf
) -> Rival:
    """`prepare` makes the argument of every call, outside the time measured. The first call only warms up, unless
    `patience` seconds are over before there is another."""
    costs = []
    for _ in range(repeats + 1):
        arguments = () if prepare is None else (prepare(),)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        held, wall, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
        result = call(*arguments)
        costs.append((time.process_time() - cpu, time.perf_counter() - wall, status("VmHWM") - held))
        del result, arguments
        if sum(c[1] for c in costs) > patience:
            break
    kept = costs[1:] or costs
    return Rival(*(median(column) for column in zip(*kept, strict=True)), runs=len(kept))


def status(key: str) -> float:
    """A line of /proc/self/status in bytes."""
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(key))
    return 1024.0 * int(line.split()[1])


def updates_of(n: int, d: int) -> list[Update]:
    """A common direction and noise, n vectors of their own memory, as answers arrive."""
    schema = Schema((("w", Leaf((d,))),))
    g = torch.Generator().manual_seed(0)
    common = torch.randn(d, generator=g)
    return [
        Update(Job(i, i, 0, 0, Budget(), 0.0), FlatTree(schema, common + torch.randn(d, generator=g)), 1.0)
        for i in range(n)
    ]


def flower(
    updates: list[Update], f: int, repeats: int
) -> dict[str, tuple[Callable[[Any], Any], int, Callable[[], Any]]]:
    """Flower's strategies by our names, as `measure` takes them. Some use their messages up: each run gets new ones."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import strategy

    from fedhet.flower.compat import claim_identity

    claim_identity(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)

    def replies() -> list[Message]:
        made = []
        for u in updates:
            parts = np.array_split(u.delta["w"].numpy(), LAYERS)
            arrays = ArrayRecord({f"layer{i}": Array(part) for i, part in enumerate(parts)})
            content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
            job = Message(RecordDict(), dst_node_id=u.job.client + 1, message_type="train")
            made.append(Message(content, reply_to=job))
        return made

    strategies = {
        "mean": strategy.FedAvg(),
        "Krum": strategy.Krum(num_malicious_nodes=f),
        "Multi-Krum": strategy.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=len(updates) - f - 2),
        "median": strategy.FedMedian(),
        "trimmed mean": strategy.FedTrimmedAvg(beta=f / len(updates)),
        "Bulyan": strategy.Bulyan(num_malicious_nodes=f),
    }
    return {name: (lambda r, s=s: s.aggregate_train(1, r), repeats, replies) for name, s in strategies.items()}


def byzfl(f: int) -> dict[str, Callable[[Any], Any]]:
    """byzfl's aggregators by our names, or nothing if it is not there."""
    if importlib.util.find_spec("byzfl") is None:
        return {}
    import byzfl as other

    return {
        "mean": other.Average(),
        "Krum": other.Krum(f),
        "Multi-Krum": other.MultiKrum(f),
        "geometric median": other.GeometricMedian(),
        "centred clipping": other.CenteredClipping(),
        "MoNNA": other.MoNNA(f),
        "MDA": other.MDA(f),
        "NNM + Krum": lambda x: other.Krum(f)(other.NNM(f)(x)),
        "median": other.Median(),
        "trimmed mean": other.TrMean(f),
        "MeaMed": other.Meamed(f),
    }


def rows(n: int, d: int, repeats: int, rivals: bool, most: float, only: list[str] | None) -> Iterator[list[str]]:
    """The table of one size. A rival whose working memory would exceed `most` bytes is left out."""
    f, updates = n // 5, updates_of(n, d)
    deltas: Any = [u.delta for u in updates]
    fixed: dict[str, Callable[[], Any]] = {
        FLOOR: lambda: [x.flat.sum() for x in deltas],
        GRAM: lambda: tree.gram(deltas),
    }
    base = in_turns(fixed, repeats)
    yield [FLOOR, seconds(base[FLOOR]), "1.0", "", megabytes(base[FLOOR]), "", ""]
    yield [GRAM, seconds(base[GRAM]), times(base[GRAM], base[FLOOR]), "1.0", megabytes(base[GRAM]), "", ""]
    theirs = flower(updates, f, repeats) if rivals else {}
    others = byzfl(f) if rivals else {}
    # bytes byzfl works in at least, where that is a lot: all differences, or sorted copies with 8-byte indices
    heavy = {
        "NNM + Krum": 4.0 * n * n * d,
        "median": 24.0 * n * d,
        "trimmed mean": 17.0 * n * d,
        "MeaMed": 24.0 * n * d,
    }
    for name, rule in rules(f).items():
        if only and name not in only:
            continue
        try:
            turns = in_turns({**fixed, name: lambda rule=rule: rule(updates, Dense, Draws)}, repeats)  # type: ignore[misc]
        except ValueError as error:
            yield [name, "refused", "", "", "", "", str(error).split(":")[0]]
            continue
        ours = turns[name]
        cells = [name, seconds(ours), times(ours, turns[FLOOR]), times(ours, turns[GRAM]), megabytes(ours)]
        if name in theirs:
            cells.append(against(measure(*theirs[name], patience=PATIENCE), ours))
        else:
            cells.append("")
        if name not in others or (name == "MDA" and math.comb(n, f) > 1e5):
            cells.append("")
        elif heavy.get(name, 0.0) > most:
            cells.append(f"left out: works in more than {most / 1e9:.0f} GB")
        else:
            matrix = torch.stack([x.flat for x in deltas])
            rival = measure(lambda m=matrix, o=others[name]: o(m), repeats, patience=PATIENCE)  # type: ignore[misc]
            cells.append(against(rival, ours))
            del matrix
        yield cells


def seconds(cost: Cost) -> str:
    return f"{1e3 * cost.cpu_seconds:,.0f} ({1e3 * cost.seconds:,.0f})"


def megabytes(cost: Cost) -> str:
    return "" if cost.memory is None else f"{cost.memory / 1e6:,.0f}"


def times(cost: Cost, to: Cost) -> str:
    return f"{cost.cpu_times(to):.1f}"


def against(rival: Rival, ours: Cost) -> str:
    few = f", {rival.runs} run{'s' * (rival.runs > 1)}" if rival.runs < len(ours.cpu) else ""
    return f"{rival.cpu / ours.cpu_seconds:.1f}x ({1e3 * rival.cpu:,.0f} ms, {rival.memory / 1e6:,.0f} MB{few})"


def versions() -> str:
    names = ["torch", "numpy", "flwr", "byzfl"]
    found = [f"{n} {importlib.metadata.version(n)}" for n in names if importlib.util.find_spec(n)]
    model = next(x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x)
    return f"Python {platform.python_version()}, {', '.join(found)}; {model}, {os.cpu_count()} cores, one thread used"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--size", type=int, choices=(0, 1), help="one of the two sizes only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="RULE", help="these rules, by the names in the table")
    parser.add_argument("--no-rivals", action="store_true", help="neither Flower nor byzfl")
    parser.add_argument("--most-gb", type=float, default=8.0, help="working memory granted to a rival")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# Cost of combination rules\n\n`{' '.join(['python', *sys.argv])}`\n\n{versions()}\n")
    print(f"Large sums: {native.backend('sum')}.")
    print("Medians of", given.repeats, "turns. Rivals: how many times our processor time, theirs, and their memory.")
    sizes = SIZES if given.size is None else SIZES[given.size :][:1]
    for n, d in QUICK if given.quick else sizes:
        print(f"\n## n = {n}, d = {d:,}, f = {n // 5} ({4 * n * d / 1e6:,.0f} MB of updates)\n")
        print("| rule | CPU ms (wall) | / reading | / Gram | extra MB | Flower | byzfl |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for cells in rows(n, d, given.repeats, not given.no_rivals, 1e9 * given.most_gb, given.only):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
