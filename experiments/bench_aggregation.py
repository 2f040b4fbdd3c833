"""Benchmark of aggregation: a weighted mean of updates, compared with reading them once and with Flower.

    python experiments/bench_aggregation.py [--repeats 9] [--threads 2] [--quick] [--out experiments/results]

A weighted mean of K float32 updates in memory, each in a buffer of its own: K = 100 of 1.66 million numbers (the
McMahan CNN) and K = 16 of 25 million (ResNet-50). The lower bound is one `torch.sum` over each update. Then a payload
of 100 MB is decoded. Systems take turns; ratios are within a turn; medians are printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fedhet import native  # noqa: E402  # threads are fixed and the checkout is found before anything is imported
from fedhet.bench import aggregation  # noqa: E402
from fedhet.bench.turns import Cost  # noqa: E402

SIZES = ((100, 1_663_370), (16, 25_000_000))
QUICK = ((20, 200_000),)


def table(costs: dict[str, Cost], size: float, output: float) -> list[str]:
    """Rows by system; `size` bytes are read at least, `output` bytes are written."""
    floor = costs[aggregation.READ]
    lines = [
        "| system | ms | GB/s | / reading | CPU ms | / reading, CPU | peak memory, models |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, cost in costs.items():
        memory = "" if cost.memory is None else f"{cost.memory / output:.2f}"
        lines.append(
            f"| {name} | {1e3 * cost.seconds:,.1f} | {size / cost.seconds / 1e9:,.1f} | {cost.times(floor):.2f} | "
            f"{1e3 * cost.cpu_seconds:,.1f} | {cost.cpu_times(floor):.2f} | {memory} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--out", type=Path, help="write bench_aggregation.md into this folder")
    given = parser.parse_args()
    began = os.getloadavg()[0]
    lines = ["# Cost of combining updates", "", f"`python experiments/bench_aggregation.py {' '.join(sys.argv[1:])}`"]
    lines += ["", *__doc__.split("\n\n", 2)[2].strip().splitlines(), ""]
    for n, d in QUICK if given.quick else SIZES:
        costs = aggregation.weighted_sum(n, d, given.repeats, given.threads)
        lines += [f"## K = {n}, {d:,} numbers ({4 * n * d / 1e6:,.0f} MB), {given.threads} threads", ""]
        lines += [*table(costs, 4.0 * n * d, 4.0 * d), ""]
        gain = costs[aggregation.FLOWER].times(costs[aggregation.OURS])
        lines += [f"Flower takes {gain:.1f} times as long as fedhet.", ""]
    d = 250_000 if given.quick else 25_000_000
    lines += [f"## Opening a payload of {4 * d / 1e6:,.0f} MB, one thread", ""]
    lines += [*table(aggregation.opening(d, given.repeats), 4.0 * d, 4.0 * d), ""]
    lines += [
        f"Medians of {given.repeats} turns; {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, torch {version('torch')}, flwr {version('flwr')}; the loop of large sums: "
        f"{native.backend('sum')}; load average {began:.1f} before and {os.getloadavg()[0]:.1f} after."
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        (given.out / "bench_aggregation.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
