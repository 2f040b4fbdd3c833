# ruff: noqa: E402  # threads are fixed and the checkout is found before anything is imported
"""Benchmark of summing LoRA adapters of unequal rank: stacking, dense products, and reading the inputs.

    python experiments/bench_lora.py [--layers 64] [--dense-layers 64] [--side 4096] [--repeats 5] [--table FILE]

Ten clients of ranks 64, 32, 16, 16, 8, 8, 4, 4, 4, 4 send updates of a Llama-7B-shaped set of query and value layers:
32 blocks, two matrices of 4096 x 4096 each. Stacking is what the server does with `space=stacked_lora`; the dense
method sums c_i B_i A_i into one matrix per layer, in place. The lower bound is a sum over every input; a copy of every
input is measured as well, as a stack is a copy in the order in which it is sent. The server's full step adds the merge
into its float32 weights, whose old version is kept, and the hash of the new ones. One thread; medians of processor
time, which is less affected by other load than wall time. Memory is the peak of the first call above the inputs; the C
library keeps freed memory, so that later calls have no page faults, and the time of the first call is given as well.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 33), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
if not KEEP.items() <= os.environ.items():  # read by the C library when a process starts
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from experiments.bench_rules import status
from fedhet import native
from fedhet.model.flat_model import Model
from strategies.spaces.lora import ledger
from strategies.spaces.lora.factors import Pair, added, compress, incompressible
from strategies.spaces.stacked_lora import StackedLora

RANKS = (64, 32, 16, 16, 8, 8, 4, 4, 4, 4)
SHARES = [r / sum(RANKS) for r in RANKS]
TARGET, FLOOR = 20.0, 1.5


@dataclass(frozen=True)
class Cost:
    """Seconds of processor: of the first call, and the median of the others (of the first if it is the only one).
    Bytes at the first call's peak."""

    first: float
    cpu: float
    memory: float


def measure(call: Callable[[], object], repeats: int) -> Cost:
    """Call 1 + `repeats` times."""
    times, memory = [], 0.0
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left goes back to the kernel
    for run in range(1 + repeats):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        held, before = status("VmRSS"), time.process_time()
        result = call()
        times.append(time.process_time() - before)
        memory = status("VmHWM") - held if run == 0 else memory
        del result
    return Cost(times[0], median(times[1:] or times), memory)


def updates_of(layers: int, side: int) -> list[dict[str, Tensor]]:
    """One update a client: factors of every layer, named as on the wire."""
    g = torch.Generator().manual_seed(0)
    names = [f"layers.{n // 2}.self_attn.{'qv'[n % 2]}_proj" for n in range(layers)]
    return [
        {
            f"{name}.{letter}": torch.randn(shape, generator=g)
            for name in names
            for letter, shape in (("lora_A", (rank, side)), ("lora_B", (side, rank)))
        }
        for rank in RANKS
    ]


def copy(updates: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """The inputs once more, and nothing else."""
    return [leaf.clone() for update in updates for leaf in update.values()]


def server(space: StackedLora, updates: Sequence[Mapping[str, Tensor]]) -> Callable[[], object]:
    """Combine and merge, as the server does, on a model whose layers are those of the updates."""
    layers = {name.removesuffix(".lora_A"): leaf.shape[1] for name, leaf in updates[0].items() if name.endswith("A")}
    module = nn.ModuleDict({name.replace(".", "/"): nn.Linear(side, side, bias=False) for name, side in layers.items()})
    state = space.begin(Model(module))
    renamed = [{n.replace(".", "/", n.count(".") - 1): leaf for n, leaf in update.items()} for update in updates]
    return lambda: space.merge(state, space.combine(renamed, SHARES))


def read(updates: Sequence[Mapping[str, Tensor]]) -> float:
    """One pass over the inputs."""
    return sum(float(leaf.sum()) for update in updates for leaf in update.values())


def dense(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The exact mean as matrices, accumulated in place."""
    found = {}
    for left in [n for n in updates[0] if n.endswith(".lora_B")]:
        right = left.removesuffix("B") + "A"
        total = torch.zeros((len(updates[0][left]), updates[0][right].shape[1]))
        for share, update in zip(SHARES, updates, strict=True):
            total.addmm_(update[left], update[right], alpha=share)
        found[left.removesuffix(".lora_B")] = total
    return found


def one_layer(stack: Pair) -> dict[str, Cost]:
    """What the step of one layer is made of, and what it could be made of."""
    left, right = stack.left.double(), stack.right.double()
    wide, weight = torch.zeros((len(left), right.shape[1]), dtype=torch.float64), torch.zeros(len(left), right.shape[1])
    calls: dict[str, Callable[[], object]] = {
        "its product in float64": lambda: torch.mm(left, right, out=wide),
        "its product in float32": lambda: torch.mm(stack.left, stack.right, out=weight),
        "its product added, in float64": lambda: added(weight, stack, weight),
        "hash of its weight": lambda: ledger.fingerprint({"adapted/weight": weight}),
        "whether compression could pay (Gram)": lambda: incompressible(stack),
        "compression (QR, SVD)": lambda: compress(stack),
    }
    return {name: measure(call, 3) for name, call in calls.items()}


def error(updates: Sequence[Mapping[str, Tensor]], stack: Mapping[str, Tensor]) -> float:
    """The stack's relative distance from the float64 sum of products, on the first layer."""
    left = next(n for n in stack if n.endswith(".lora_B"))
    right = left.removesuffix("B") + "A"
    exact = sum(s * (u[left].double() @ u[right].double()) for s, u in zip(SHARES, updates, strict=True))
    assert isinstance(exact, Tensor)
    return float((stack[left].double() @ stack[right].double() - exact).norm() / exact.norm())


def row(name: str, cost: Cost, floor: Cost, scale: float = 1.0) -> str:
    """A line of the table; `scale` carries figures of fewer layers to all of them."""
    cpu, first, memory = cost.cpu * scale, cost.first * scale, cost.memory * scale
    return f"| {name} | {1e3 * cpu:,.0f} | {1e3 * first:,.0f} | {cpu / floor.cpu:.1f} | {memory / 1e6:,.0f} |"


def main() -> None:
    """Measure and print; write the table if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--dense-layers", type=int, default=64, help="layers the dense way is measured on")
    parser.add_argument("--merged-layers", type=int, default=4, help="layers the server's whole step is measured on")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    updates, space = updates_of(given.layers, given.side), StackedLora(rank=max(RANKS))
    few = [dict(list(u.items())[: 2 * given.dense_layers]) for u in updates]
    some = given.layers / given.dense_layers
    floor = measure(lambda: read(updates), given.repeats)
    copied = measure(lambda: copy(updates), given.repeats)
    stacked = measure(lambda: space.combine(updates, SHARES), given.repeats)
    summed = measure(lambda: dense(few), 1)
    fewer = [dict(list(u.items())[: 2 * given.merged_layers]) for u in updates]
    merged, rest = measure(server(space, fewer), 1), given.layers / given.merged_layers
    inner = measure(lambda: space.gram(updates), 1)
    stack = space.combine(updates, SHARES)
    pair = Pair(*(next(leaf for n, leaf in stack.items() if n.endswith(end)) for end in ("lora_B", "lora_A")))
    parts = one_layer(pair)
    size = sum(leaf.numel() * 4 for u in updates for leaf in u.values()) / 1e6
    times, memory = summed.cpu * some / stacked.cpu, summed.memory * some / stacked.memory
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "numpy"))
    ideal = given.side / (2 * sum(RANKS))
    note = f", dense figures of {given.dense_layers} layers times {some:g}" if some > 1 else ""
    ranks = ", ".join(map(str, RANKS))
    lines = [
        "# Cost of summing adapters of unequal rank",
        "",
        f"    {' '.join(['python', 'experiments/bench_lora.py', *sys.argv[1:]])}",
        "",
        f"{len(RANKS)} clients of ranks {ranks}; {given.layers} layers of {given.side} x {given.side};",
        f"{size:,.0f} MB of updates. Python {platform.python_version()}, {versions}; one thread{note}.",
        f"Processor time is the median of {given.repeats} calls (dense, step and Gram: 1, parts: 3) after the first,",
        "whose own time, with pages that are fresh from the kernel, stands beside it. The machine was shared. Memory",
        "is the first call's peak above the inputs.",
        "",
        "| | CPU ms | first call | / reading | extra MB |",
        "|---|---|---|---|---|",
        row("reading once", floor, floor),
        row("stack", stacked, floor),
        row("dense products", summed, floor, some),
        row("copying once", copied, floor),
        row(f"the server's whole step (of {given.merged_layers} layers, times {rest:g})", merged, floor, rest),
        row("Gram matrix of 10 (for Krum and its like)", inner, floor),
        *(row(f"one layer: {name}", cost, floor) for name, cost in parts.items()),
        "",
        f"Dense against stack: {times:.0f} times the time (target: {TARGET:g}), {memory:.1f} times the memory (target:",
        f"{TARGET:g}; out of reach: any stack has R (d + k) numbers a layer against d k, {ideal:.1f} times fewer).",
        f"Stack against reading: {stacked.cpu / floor.cpu:.2f} times (target: {FLOOR:g}); against copying with",
        f"ordinary stores, which read every line they overwrite: {stacked.cpu / copied.cpu:.2f} times. The loop of",
        f"large stacks: {native.backend('stack')}. A stack is what goes down to clients, numbers in an order of their",
        "own, so it is written once in any case; one of references to what came would put it off until it is sent. Its",
        "memory is used again by the next one, however the C library is set; a server's first stack pays for new.",
        f"It is {stacked.cpu / (merged.cpu * rest):.1%} of the whole step. Nearly all of that is the merge: a product",
        "in float64, added to d k weights, so that unlike machines agree on the bits; a hash of them, so that one that",
        "does not is found out; and a look whether the stack can be compressed. Its memory is new weights beside old,",
        "and comes back with old versions.",
        f"The stack's relative distance from the float64 sum of products: {error(updates, stack):.1e}.",
    ]
    text = "\n".join([*lines, ""])
    print(text)
    if given.table is not None:
        given.table.write_text(text)


if __name__ == "__main__":
    main()
