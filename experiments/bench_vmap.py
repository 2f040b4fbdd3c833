"""Benchmark of steps of small perceptrons: `torch.func.vmap` against the compiled code of `fedhet.native`.

    OMP_NUM_THREADS=1 python experiments/bench_vmap.py [--turns 9] [--seconds 0.3] [--load W1] [--out FILE]

One job each of K clients: every client starts from the same model, takes its own steps of plain SGD on mini-batches of
one data set in memory, and leaves the difference. Shapes and batches are those of bench_simulation.py; K is 10, the
clients of a round, or 5, a round's share of one of two workers. One process, one thread.

compiled    what the simulation runs: all steps of all clients in one call, samples fetched by index
vmap        functional_call, grad_and_value and vmap over clients, parameters stacked (K, ...), the step in place
autograd    one client after the other: forward, torch.autograd.grad, a step in place

The three give the same losses and differences to rounding, which is checked first. They take turns; a ratio is taken
within a turn, and medians over turns are told with least and most. CPU is the processor time of the process.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TypeAlias

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # threads are fixed and the checkout is found before anything is imported
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from clients.models.vision import mlp
from fedhet import native
from fedhet.bench.turns import Cost, in_turns
from fedhet.model.flat_model import Model
from fedhet.types import IndexedBatches

LIMIT = 1.3
"""Times as long as the compiled steps: nearer than that, vmap could take their place."""
RATE = 0.05
FEATURES, CLASSES, SAMPLES = 784, 10, 10_000

Answer: TypeAlias = tuple[Tensor, list[Tensor]]
"""Losses (K, steps) and K differences of (parameters,)."""


@dataclass(frozen=True)
class Load:
    """K clients, each with `steps` batches of `batch` samples, on a perceptron with these hidden layers."""

    clients: int
    steps: int
    batch: int
    hidden: tuple[int, ...]


LOADS = {
    "W1, 10 clients": Load(10, 10, 10, (200, 200)),
    "W1, 5 clients": Load(5, 10, 10, (200, 200)),
    "W1, batches of 32": Load(10, 10, 32, (200, 200)),
    "mlp_small, 10 clients": Load(10, 10, 10, (128, 64)),
    "W3, 10 clients": Load(10, 1, 32, ()),
    "W3, 100 clients": Load(100, 1, 32, ()),
}


@dataclass(frozen=True)
class Jobs:
    """The data of all clients: `order` (K, steps * batch) says which samples a client takes, in their order."""

    x: Tensor
    y: Tensor
    order: Tensor
    start: Tensor
    load: Load

    @classmethod
    def drawn(cls, load: Load, start: Tensor) -> Jobs:
        draw = torch.Generator().manual_seed(1)
        x = torch.randn(SAMPLES, 1, 28, 28, generator=draw)
        y = torch.randint(CLASSES, (SAMPLES,), generator=draw)
        order = torch.randint(SAMPLES, (load.clients, load.steps * load.batch), generator=draw)
        return cls(x, y, order, start, load)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The step's samples of all clients: (K, batch, 1, 28, 28) and (K, batch)."""
        n, k = self.load.batch, self.load.clients
        index = self.order[:, step * n : (step + 1) * n].reshape(-1)
        return self.x.index_select(0, index).view(k, n, 1, 28, 28), self.y.index_select(0, index).view(k, n)


def module(load: Load) -> nn.Module:
    torch.manual_seed(0)
    return mlp(input_shape=(1, 28, 28), classes=CLASSES, hidden=load.hidden)


def compiled(model: Model, jobs: Jobs) -> Callable[[], Answer]:
    """As a worker of the simulation does it."""
    load = jobs.load
    rows = native.batched_stepper(model.perceptron, load.clients) if model.perceptron is not None else None
    if rows is None:
        raise SystemExit(f"there are no compiled steps: {native.backend('mlp')}")
    starts = [jobs.start] * load.clients
    sizes = [load.batch] * load.steps

    def run() -> Answer:
        deltas = [torch.empty_like(jobs.start) for _ in starts]
        rows.begin(starts, deltas)
        losses = rows.pick([IndexedBatches(jobs.x, jobs.y, order, sizes) for order in jobs.order], RATE)
        if losses is None:
            raise SystemExit(f"the steps are not compiled: {native.backend('mlp')}")
        rows.finish()
        return losses, deltas

    return run


def side_by_side(jobs: Jobs) -> Callable[[], Answer]:
    """`torch.func.vmap` over stacked parameters, which are views of one matrix (K, parameters)."""
    net, load = module(jobs.load), jobs.load
    names = [(name, p.shape) for name, p in net.named_parameters()]
    sizes = [shape.numel() for _, shape in names]
    flat = torch.empty(load.clients, len(jobs.start))
    parts = flat.split(sizes, 1)
    stacked = {name: part.view(-1, *shape) for (name, shape), part in zip(names, parts, strict=True)}

    def loss_of(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(net, parameters, (x,)), y)

    both = vmap(grad_and_value(loss_of))

    def run() -> Answer:
        flat.copy_(jobs.start)
        losses = []
        for step in range(load.steps):
            gradients, loss = both(stacked, *jobs.batch(step))
            torch._foreach_add_(list(stacked.values()), [gradients[name] for name in stacked], alpha=-RATE)
            losses.append(loss)
        return torch.stack(losses, 1), list(flat - jobs.start)

    return run


def one_by_one(jobs: Jobs) -> Callable[[], Answer]:
    """A client after the other, by autograd."""
    net, load = module(jobs.load), jobs.load
    flat = torch.empty_like(jobs.start)
    parameters = list(net.parameters())
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.data = part.view(p.shape)

    def client(order: Tensor) -> tuple[Tensor, Tensor]:
        flat.copy_(jobs.start)
        losses = []
        for index in order.split(load.batch):
            loss = nn.functional.cross_entropy(net(jobs.x.index_select(0, index)), jobs.y.index_select(0, index))
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-RATE)
            losses.append(loss.detach())
        return torch.stack(losses), flat - jobs.start

    def run() -> Answer:
        told = [client(order) for order in jobs.order]
        return torch.stack([losses for losses, _ in told]), [delta for _, delta in told]

    return run


def compare(systems: dict[str, Callable[[], Answer]]) -> None:
    """Raises AssertionError unless all say the same to rounding."""
    losses, deltas = systems["compiled"]()
    for run in systems.values():
        got, moved = run()
        torch.testing.assert_close(got, losses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.stack(moved), torch.stack(deltas), rtol=1e-3, atol=1e-5)


def measure(load: Load, turns: int, seconds: float) -> tuple[dict[str, Cost], dict[str, int]]:
    """Each system's cost a turn, and how many times it does all jobs in one: about `seconds` long."""
    model = Model(module(load))
    jobs = Jobs.drawn(load, model.flat.clone())
    systems = {"compiled": compiled(model, jobs), "vmap": side_by_side(jobs), "autograd": one_by_one(jobs)}
    compare(systems)
    counts, repeated = {}, {}
    for name, run in systems.items():
        at = time.perf_counter()
        for _ in range(3):
            run()
        counts[name] = count = max(1, round(3 * seconds / (time.perf_counter() - at)))
        repeated[name] = lambda run=run, count=count: [run() for _ in range(count)][-1]
    return in_turns(repeated, turns), counts


def spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def table(load: Load, costs: dict[str, Cost], counts: dict[str, int]) -> list[str]:
    lines = ["| steps by | ms a client, wall | ms a client, CPU | x compiled, wall | x compiled, CPU |"]
    lines.append("|---|--:|--:|--:|--:|")
    ways: dict[str, tuple[list[float], list[float]]] = {}
    for name, cost in costs.items():
        unit = 1e3 / (counts[name] * load.clients)
        ways[name] = [unit * s for s in cost.wall], [unit * s for s in cost.cpu]
    for name, (wall, cpu) in ways.items():
        ratios = [
            [a / b for a, b in zip(own, base, strict=True)]
            for own, base in zip((wall, cpu), ways["compiled"], strict=True)
        ]
        cells = [f"{median(wall):.3f}", f"{median(cpu):.3f}", *(spread(r, ".2f") for r in ratios)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="turns of all systems (9)")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long a system's part of a turn is, about (0.3)")
    parser.add_argument("--load", default="", help="only loads whose names have this in them")
    parser.add_argument("--out", type=Path, help="write the tables into this file")
    given = parser.parse_args()
    chosen = {name: load for name, load in LOADS.items() if given.load in name}
    if not chosen:
        parser.error(f"--load {given.load!r} is in none of: {'; '.join(LOADS)}")
    torch.set_num_threads(1)
    began, lines, within = os.getloadavg()[0], [], {}
    for name, load in chosen.items():
        costs, counts = measure(load, given.turns, given.seconds)
        within[name] = median(
            (a / counts["vmap"]) / (b / counts["compiled"])
            for a, b in zip(costs["vmap"].cpu, costs["compiled"].cpu, strict=True)
        )
        shape = "-".join(str(n) for n in (FEATURES, *load.hidden, CLASSES))
        lines += ["", f"### {name}: {shape}, {load.clients} clients, {load.steps} step(s) of {load.batch}", ""]
        lines += table(load, costs, counts)
        print(f"{name} done", file=sys.stderr)
    near = [name for name, ratio in within.items() if ratio <= LIMIT]
    head = ["# Steps of small perceptrons: compiled, vmap, autograd", "", f"`{' '.join(['python', *sys.argv])}`", ""]
    head += [
        f"{given.turns} turns on {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {version('torch')}, one thread; load average {began:.1f} before and {os.getloadavg()[0]:.1f} after.",
        f"vmap is within {LIMIT} times the compiled steps' processor time at: {', '.join(near) or 'none of these'}.",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
