"""Training speed of this machine: one small optimiser step, repeated; median and interquartile range.

A single measurement is unreliable on a busy machine. If the interquartile range exceeds a fifth of the median, the
measurement is marked noisy, and the server prefers its own observations.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

NOISY = 0.2
"""Interquartile range over median above which a measurement is noisy."""
BATCH = 32


def measure(
    step: Callable[[], object], *, seconds: float = 3.0, least: int = 5, most: int = 1000,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:  # fmt: skip
    """Seconds of each repetition, after two warm-up steps; until `seconds` are over, at least `least` and at most
    `most` repetitions."""
    step(), step()
    taken: list[float] = []
    begin = clock()
    while len(taken) < least or (clock() - begin < seconds and len(taken) < most):
        start = clock()
        step()
        taken.append(clock() - start)
    return taken


def summary(taken: Sequence[float], batch: int = BATCH) -> dict[str, int]:
    """The measured column of a profile, in integer microseconds. Raises ValueError for fewer than five repetitions."""
    if len(taken) < 5:
        raise ValueError(f"{len(taken)} repetitions are too few to estimate the spread: give at least 5")
    low, median, high = (float(q) for q in np.percentile(np.asarray(taken) * 1e6, [25, 50, 75]))
    noisy = high - low > NOISY * median
    return {
        "step_us": max(1, round(median)),
        "step_iqr_us": round(high - low),
        "repeats": len(taken),
        "batch": batch,
        "noisy": int(noisy),
    }


def run(seconds: float = 3.0) -> dict[str, int]:
    """Measure a step of stochastic gradient descent on a small network with one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(BATCH, 256, generator=generator), torch.randint(0, 10, (BATCH,), generator=generator)
        model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step() -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return summary(measure(step, seconds=seconds))
    finally:
        torch.set_num_threads(threads)


def hardware() -> dict[str, int | str]:
    """CPU cores, memory, GPU and software of this machine, in the units of a profile."""
    import torch

    import fedhet

    found: dict[str, int | str] = {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "software": f"fedhet {fedhet.__version__} torch {torch.__version__}",
    }
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        found |= {"gpu": str(about.name)[:200], "gpu_memory_bytes": int(about.total_memory)}
    return found
