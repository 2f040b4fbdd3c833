"""The sections of `fedhet bench`: simulation, aggregation, decoding, rules; each is a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from fedhet import native
from fedhet.bench import aggregation, rules, simulation
from fedhet.bench.aggregation import FLOWER, OURS, READ

REPEATS = 3


@dataclass(frozen=True)
class Section:
    """A table: `rows` map the columns to numbers or text; `note` explains them."""

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, float | str], ...]


def simulated() -> Section:
    """Tasks per second on W1, with one worker and with one per core; and on W3 with fleets of two sizes."""
    small = {**simulation.W1, "rounds": 40}
    cores = len(os.sched_getaffinity(0))
    systems: dict[str, Callable[[], dict[str, float]]] = {"loop by hand": lambda: simulation.hand(small)}
    for workers in sorted({1, min(8, cores)}):
        systems[f"fedhet, workers={workers}"] = lambda workers=workers: simulation.ours(small, workers)  # type: ignore[misc]
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(2):
        for name, run in systems.items():
            rates[name].append(run()["rate"])
    base = rates["loop by hand"]
    rows: list[Mapping[str, float | str]] = [
        {
            "load": "perceptron, 10 of 100 clients",
            "system": name,
            "tasks/s": median(got),
            "x hand": median(a / b for a, b in zip(got, base, strict=True)),
        }
        for name, got in rates.items()
    ]
    for clients in (1_000, 100_000):
        load = {**simulation.W3, "clients": clients, "rounds": 30}
        found = simulation.ours(load, min(8, cores))
        load_name = f"softmax, 100 of {clients:,} clients"
        rows.append({"load": load_name, "system": f"fedhet, workers={min(8, cores)}", "tasks/s": found["rate"]})
    steps = native.backend("mlp")
    note = f"Client tasks per second of real time, warm; one torch thread per process; small steps: {steps}."
    return Section("simulation", "Simulated client tasks", note, ("load", "system", "tasks/s", "x hand"), tuple(rows))


def combined() -> Section:
    """A weighted mean of 20 updates of 1.66 million numbers, on all processors."""
    n, d, threads = 20, 1_663_370, len(os.sched_getaffinity(0))
    costs = aggregation.weighted_sum(n, d, REPEATS, threads)
    rows: tuple[Mapping[str, float | str], ...] = tuple(
        {
            "system": name,
            "ms": 1e3 * cost.seconds,
            "x reading": cost.times(costs[READ]),
            "GB/s": 4e-9 * n * d / cost.seconds,
            "extra MB": "" if cost.memory is None else cost.memory / 1e6,
        }
        for name, cost in costs.items()
    )
    note = (
        f"{n} updates of {d:,} float32 numbers, {threads} thread(s); the loop of large sums: {native.backend('sum')}."
    )
    return Section("aggregation", "Combining updates", note, ("system", "ms", "x reading", "GB/s", "extra MB"), rows)


def opened() -> Section:
    """Decoding a payload of 20 MB to tensors."""
    costs = aggregation.opening(5_000_000, REPEATS)
    rows: tuple[Mapping[str, float | str], ...] = tuple(
        {"system": name, "ms": 1e3 * costs[name].seconds} for name in (READ, OURS, FLOWER)
    )
    return Section("decode", "Opening a payload of 20 MB", "One thread.", ("system", "ms"), rows)


def ruled() -> Section:
    """Every rule on 20 updates of 200,000 numbers."""
    n, d = 20, 200_000
    costs, refused = rules.costs(n, d, REPEATS)
    rows: list[Mapping[str, float | str]] = [
        {"rule": name, "ms": 1e3 * cost.cpu_seconds, "x reading": cost.cpu_times(costs[READ])}
        for name, cost in costs.items()
    ]
    rows += [{"rule": name, "ms": "refused", "x reading": why} for name, why in refused.items()]
    note = f"{n} updates of {d:,} float32 numbers, {n // 5} of them wrong; processor time on one thread."
    return Section("rules", "Combination rules", note, ("rule", "ms", "x reading"), tuple(rows))


SECTIONS: Mapping[str, Callable[[], Section]] = {
    "simulation": simulated,
    "aggregation": combined,
    "decode": opened,
    "rules": ruled,
}


def sections(names: tuple[str, ...]) -> Iterator[Section]:
    """Measure the named sections one after another. The number of torch threads is restored at the end."""
    before = torch.get_num_threads()
    try:
        for name in names:
            yield SECTIONS[name]()
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, str | float | int]:
    """The machine: processor, cores, load, and versions of Python and packages."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())
    packages = {name: version(name) for name in ("torch", "numpy", "flwr")}
    return {
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **packages,
    }
