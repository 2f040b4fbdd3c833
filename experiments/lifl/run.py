"""Aggregation of N concurrent updates: permanent aggregators, functions with a broker, a tree in shared memory.

    python experiments/lifl/run.py [--repeats 3] [--quick] [--out experiments/results]

Real processes on this machine, then the same three on a virtual cluster (`cluster.py`) with the costs measured here.
The comparison follows LIFL (Qi et al., arXiv:2405.10968); see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle  # between processes of this experiment alone, see parts.py
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Client
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import cluster  # noqa: E402  # the checkout is found first
import numpy as np  # noqa: E402
import parts  # noqa: E402
import torch  # noqa: E402

from fedhet import native  # noqa: E402
from fedhet.hierarchy.plan import Groups  # noqa: E402
from fedhet.hierarchy.processes import Team  # noqa: E402

MODELS = {"ResNet-18": 11_689_512, "ResNet-50": 25_557_032}
SIZES = (("ResNet-18", 20), ("ResNet-18", 60), ("ResNet-18", 120), ("ResNet-50", 20), ("ResNet-50", 40))
QUICK = (("ResNet-18", 8),)
LEAF = 4
"""Updates that a leaf, or a function, sums."""

AT_ONCE = 4
"""Functions that run at a time."""


class Meter:
    """Seconds on the clock and of processor time of this process and its children, from here to `read`."""

    def __init__(self, children: list[int]) -> None:
        self._children = children
        self._used, self._began = self._cpu(), time.perf_counter()

    def _cpu(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        tick, total = os.sysconf("SC_CLK_TCK"), ended.ru_utime + ended.ru_stime + time.process_time()
        for pid in self._children:
            path = Path(f"/proc/{pid}/stat")
            if path.exists():
                fields = path.read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / tick
        return total

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._began, "cpu": self._cpu() - self._used}


def start(*arguments: str) -> subprocess.Popen[str]:
    """One of the rivals' processes; returns when it listens, if it does."""
    command = [sys.executable, str(HERE / "parts.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if arguments[0] != "function":
        assert process.stdout is not None
        process.stdout.readline()
    return process


def serverful(n: int, x: np.ndarray, room: str) -> dict[str, float]:
    """Two aggregators that are always on; updates and partial sums are messages."""
    body = pickle.dumps(x, protocol=5)
    processes = [start("aggregator", f"{room}/a{i}") for i in range(2)]
    pipes = [Client(f"{room}/a{i}", "AF_UNIX") for i in range(2)]
    meter = Meter([p.pid for p in processes])
    for i, pipe in enumerate(pipes):
        pipe.send_bytes(pickle.dumps(len(range(i, n, 2))))
    for i in range(n):
        pipes[i % 2].send_bytes(body)
    partial = pipes[1].recv_bytes()
    first = pipes[0].recv_bytes()
    pipes[0].send_bytes(pickle.dumps(2))
    for message in (first, partial):
        pipes[0].send_bytes(message)
    result = pickle.loads(pipes[0].recv_bytes()) / n
    told = meter.read()
    for process, pipe in zip(processes, pipes, strict=True):
        pipe.close()
        process.wait()
    check(result, x)
    return told


def serverless(n: int, x: np.ndarray, room: str) -> dict[str, float]:
    """Functions started for `LEAF` messages each, behind a broker and a sidecar, and one more for the partial sums."""
    body = pickle.dumps(x, protocol=5)
    bus = start("broker", f"{room}/broker")
    pipe = Client(f"{room}/broker", "AF_UNIX")
    shares = [min(LEAF, n - at) for at in range(0, n, LEAF)]
    meter = Meter([bus.pid])

    def begin(name: str, answer: str, count: int) -> list[subprocess.Popen[str]]:
        own = f"{room}/{name}"
        return [
            start("sidecar", f"{room}/broker", own, name, answer, str(count)),
            start("function", own, str(count)),
        ]

    running: list[list[subprocess.Popen[str]]] = []
    for number, count in enumerate(shares):
        if len(running) == AT_ONCE:
            for process in running.pop(0):
                process.wait()
        running.append(begin(f"leaf{number}", "top", count))
        for _ in range(count):
            parts.put(pipe, f"leaf{number}", body)
    for process in [p for pair in running for p in pair]:
        process.wait()
    last = begin("top", "done", len(shares))
    result = pickle.loads(parts.get(pipe, "done")) / n
    for process in last:
        process.wait()
    told = meter.read()
    pipe.close()
    bus.kill()
    bus.wait()
    check(result, x)
    return told


def tree(n: int, x: np.ndarray, room: str, *, eager: bool = True, warm: bool = True) -> dict[str, float]:
    """Ours: updates are laid into shared memory once, leaves sum them as they come, descriptors travel."""
    values = torch.from_numpy(x)
    team = Team(most=max(1, (os.cpu_count() or 1) - 1), idle=30.0)
    if warm:  # as after an earlier combination: processes are there and their memory was used before
        held = [team.hold(values) for _ in range(n)]
        once = [team.submit(held[at : at + LEAF], [1.0] * len(held[at : at + LEAF]), 9) for at in range(0, n, LEAF)]
        team.wait(once)
        del held, once
    groups: Groups[Any] = Groups({"here": n}, LEAF)
    meter = Meter([p.popen.pid for p in team._processes])
    leaves = []
    for i in range(n):
        group = groups.add(team.hold(values))
        if eager and (len(group) == LEAF or i == n - 1):
            leaves.append(team.submit(group, [1.0] * len(group), team.most))
    if not eager:
        leaves = [team.submit(group, [1.0] * len(group), team.most) for group in groups.by_host["here"]]
    team.wait(leaves)
    top = team.submit([leaf.out for leaf in leaves], [1.0] * len(leaves), team.most)
    team.wait([top])
    result = top.out.values.div_(n).numpy()
    if not warm:
        team.resize(0)  # what they used is counted once they have ended
    told = meter.read()
    check(result, x)
    team.close()
    return told


def flat(n: int, x: np.ndarray, room: str) -> dict[str, float]:
    """Ours without a tree: updates that lie where they were received, one sum at the end."""
    rows = [torch.from_numpy(x).clone() for _ in range(n)]
    torch.set_num_threads(1)
    out = torch.zeros(len(x))
    meter = Meter([])
    if not native.sum_into(rows, [1 / n] * n, out):
        raise SystemExit(f"the loop of large sums is not there: {native.backend('sum')}")
    told = meter.read()
    check(out.numpy(), x)
    return told


def check(result: np.ndarray, x: np.ndarray) -> None:
    if not np.allclose(result, x, rtol=1e-5):
        raise SystemExit("the mean of equal updates is not the update")


SYSTEMS: dict[str, Callable[[int, np.ndarray, str], dict[str, float]]] = {
    "tree": tree,
    "tree, cold": lambda n, x, room: tree(n, x, room, warm=False),
    "tree, lazy": lambda n, x, room: tree(n, x, room, eager=False),
    "serverful": serverful,
    "serverless": serverless,
    "flat": flat,
}


def one(system: str, model: str, n: int, before: list[str], rest: float) -> dict[str, float]:
    """One measurement in a process of its own."""
    time.sleep(rest)
    command = [*before, sys.executable, __file__, "--one", system, model, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(model: str, n: int, repeats: int, before: list[str], rest: float) -> list[str]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for _ in range(repeats):
        for name in SYSTEMS:
            runs[name].append(one(name, model, n, before, rest))
    base = runs["tree"]
    lines = [
        f"### {n} updates of {model} ({4 * MODELS[model] / 1e6:.0f} MB each)\n",
        "| system | seconds | x tree | CPU seconds | x tree |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, got in runs.items():
        cells = []
        for key in ("seconds", "cpu"):
            ratio = median(a[key] / b[key] for a, b in zip(got, base, strict=True))
            cells += [f"{median(r[key] for r in got):.2f}", f"{ratio:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    print("\n".join(lines), file=sys.stderr)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one small size, once")
    parser.add_argument("--before", default="", metavar="COMMAND", help="put before every measurement, e.g. chrt -f 1")
    parser.add_argument("--rest", type=float, default=0.0, metavar="SECONDS", help="between two measurements")
    parser.add_argument("--out", type=Path, help="write lifl.md into this folder")
    parser.add_argument("--one", nargs=3, metavar=("SYSTEM", "MODEL", "N"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        system, model, n = given.one
        x = np.random.default_rng(0).standard_normal(MODELS[model], dtype=np.float32)
        with tempfile.TemporaryDirectory() as room:
            print(json.dumps(SYSTEMS[system](int(n), x, room)))
        return
    began = os.getloadavg()[0]
    lines = ["# Aggregators: always on, functions, a tree", ""]
    lines += [f"`python experiments/lifl/run.py {' '.join(sys.argv[1:])}`", "", "## Processes on this machine", ""]
    for model, n in QUICK if given.quick else SIZES:
        lines += rows(model, n, 1 if given.quick else given.repeats, given.before.split(), given.rest)
    lines += cluster.report({name: 4.0 * size for name, size in MODELS.items()})
    lines += [
        f"Medians of {1 if given.quick else given.repeats} interleaved turns; {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}, numpy {version('numpy')}, torch "
        f"{version('torch')}, the loop of large sums: {native.backend('sum')}; load average {began:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after."
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        (given.out / "lifl.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
