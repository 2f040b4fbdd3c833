"""The three systems on a simulated cluster, with a virtual clock and costs measured on this machine.

Five hosts of eight processors and a 10 Gbit/s port each. N updates are sent at second 0; a host's port receives them
one after the other, then the first free processor works on each. A hop is a message received, copied and unpickled by
another process; a message between hosts also uses the sender's port. Placement, groups and capacities are those of
`fedhet.hierarchy.plan`.
"""

from __future__ import annotations

import heapq
import pickle
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Client
from statistics import median

import numpy as np
import torch

from fedhet import native
from fedhet.hierarchy.plan import Groups

HOSTS, CORES, PORT, CAPACITY, LEAF = 5, 8, 10e9 / 8, 24, 4
COUNTS = (20, 60, 120)
START = 1.0
"""Seconds of processor that a cold function takes where it has a container and a framework to start."""


@dataclass(frozen=True)
class Costs:
    """Processor seconds per byte: adding an update, copying it into shared memory, moving it as a message. `process` is
    what starting a bare process of ours takes."""

    add: float
    copy: float
    hop: float
    process: float


def measure() -> Costs:
    """On this machine, with vectors of 47 MB."""
    from run import Meter, Team, start  # beside this file, and it imports this one

    x = torch.randn(11_689_512)
    rows, out = [x.clone() for _ in range(4)], torch.zeros_like(x)
    size, body = 4.0 * len(x), pickle.dumps(x.numpy(), protocol=5)

    def add() -> float:
        began = time.process_time()
        native.sum_into(rows, [1.0] * 4, out)
        return (time.process_time() - began) / 4

    def copy() -> float:
        began = time.process_time()
        out.copy_(x)
        return time.process_time() - began

    with tempfile.TemporaryDirectory() as room:
        aggregator = start("aggregator", f"{room}/a")
        with Client(f"{room}/a", "AF_UNIX") as pipe:
            meter = Meter([aggregator.pid])
            pipe.send_bytes(pickle.dumps(9))
            for _ in range(9):
                pipe.send_bytes(body)
            pipe.recv_bytes()
            moved = meter.read()["cpu"] / 10  # nine updates in, one sum out
        aggregator.wait()
    torch.set_num_threads(1)
    added = median(add() for _ in range(7))
    began = time.process_time()
    total = x.numpy().copy()
    for _ in range(5):
        np.add(total, x.numpy(), out=total)
    plain = (time.process_time() - began) / 6
    meter, team = Meter([]), Team(1, 30.0)
    team.wait([team.submit([team.hold(x[:100])], [1.0], 1)])
    team.close()
    return Costs(added / size, median(copy() for _ in range(7)) / size, (moved - plain) / size, meter.read()["cpu"])


@dataclass
class Host:
    """Processors and a port, by the second at which each is free."""

    cores: list[float] = field(default_factory=lambda: [0.0] * CORES)
    port: float = 0.0
    cpu: float = 0.0

    def work(self, ready: float, seconds: float) -> float:
        """Do something on the processor that is free first; returns when it is done."""
        done = max(ready, heapq.heappop(self.cores)) + seconds
        heapq.heappush(self.cores, done)
        self.cpu += seconds
        return done

    def carry(self, ready: float, size: float) -> float:
        """Bytes through the port."""
        self.port = max(ready, self.port) + size / PORT
        return self.port


@dataclass(frozen=True)
class System:
    """How a system moves and sums: processor seconds per byte for an update to reach its leaf, a partial sum to reach
    the next one on the same or another host, and seconds for a leaf, middle or top to be there."""

    placement: str
    enter: float
    near: float
    far: float
    add: float
    cold: float
    eager: bool = True


def systems(c: Costs) -> dict[str, System]:
    return {
        "tree, best fit": System("best_fit", c.copy, 0.0, c.copy, c.add, 0.0),
        "tree, best fit, cold": System("best_fit", c.copy, 0.0, c.copy, c.add, c.process),
        "tree, best fit, lazy": System("best_fit", c.copy, 0.0, c.copy, c.add, 0.0, eager=False),
        "tree, worst fit": System("worst_fit", c.copy, 0.0, c.copy, c.add, 0.0),
        "serverful": System("worst_fit", c.hop, c.hop, c.hop, c.add, 0.0),
        "serverless, warm": System("worst_fit", 3 * c.hop, 3 * c.hop, 3 * c.hop, c.add, 0.0),
        "serverless": System("worst_fit", 3 * c.hop, 3 * c.hop, 3 * c.hop, c.add, START),
    }


def simulate(how: System, n: int, size: float) -> tuple[float, float, int]:
    """Seconds until the sum is there, processor seconds, hosts that took part."""
    hosts = {f"host{i}": Host() for i in range(HOSTS)}
    groups: Groups[int] = Groups(dict.fromkeys(hosts, CAPACITY), LEAF, how.placement)
    for i in range(n):
        groups.add(i)
    arrived: dict[int, float] = {}
    for name, held in groups.by_host.items():
        for i in sorted(i for group in held for i in group):
            arrived[i] = hosts[name].work(hosts[name].carry(0.0, size), how.enter * size)
    all_there = max(arrived.values())
    middles: dict[str, float] = {}
    for name, held in groups.by_host.items():
        leaves = []
        for group in held:
            ready = max(arrived[i] for i in group) if how.eager else all_there
            ready = hosts[name].work(ready, how.cold) if how.cold else ready
            done = hosts[name].work(ready, how.add * size * len(group))
            leaves.append(hosts[name].work(done, how.near * size) if how.near else done)
        if leaves:
            middles[name] = hosts[name].work(max(leaves), how.cold + how.add * size * len(leaves))
    top = max(middles, key=lambda name: sum(map(len, groups.by_host[name])))
    there = [middles[top]]
    for name, done in middles.items():
        if name != top:
            there.append(hosts[top].work(hosts[name].carry(done, size), how.far * size))
    done = hosts[top].work(max(there), how.cold + how.add * size * len(there)) if len(there) > 1 else there[0]
    return done, sum(host.cpu for host in hosts.values()), len(middles)


def report(sizes: dict[str, float]) -> list[str]:
    """Tables by model, for the results file."""
    costs = measure()
    lines = ["## A virtual cluster", "", *(__doc__ or "").split("\n\n", 1)[1].strip().splitlines(), ""]
    lines += [
        f"Measured here, ns of processor per byte: add {1e9 * costs.add:.3f}, copy {1e9 * costs.copy:.3f}, hop "
        f"{1e9 * costs.hop:.3f}; a process of ours starts in {costs.process:.2f} s of processor. A cold function of "
        f"the serverless system is granted {START:g} s, an assumption. Leaves sum {LEAF}, a host serves {CAPACITY}.",
        "",
    ]
    for model, size in sizes.items():
        lines += [
            f"### {model}",
            "",
            "| system | " + " | ".join(f"N = {n}: s (x), CPU s (x), hosts" for n in COUNTS) + " |",
        ]
        lines += ["|---|" + "---|" * len(COUNTS)]
        base = [simulate(systems(costs)["tree, best fit"], n, size) for n in COUNTS]
        for name, how in systems(costs).items():
            cells = []
            for n, (seconds, cpu, _) in zip(COUNTS, base, strict=True):
                s, c, used = simulate(how, n, size)
                cells.append(f"{s:.2f} ({s / seconds:.2f}), {c:.2f} ({c / cpu:.2f}), {used}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines
