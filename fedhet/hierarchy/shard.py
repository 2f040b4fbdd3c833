"""One share of the columns: its inner products, or a function of each of its coordinates, in a process of its own.

    {"do": "gram", "rows": [...], "size": 70000, "out": ...}      one (n, n) float64 for each chunk of columns
    {"do": "reduce", "rows": [...], "size": 70000, "out": ..., "weights": [...], "scales": [...], "matrix": null,
     "module": "strategies.rules.median", "function": {...}}      one float32 a column; a matrix is (k, n) float64

Chunks and blocks begin where they begin when one process does it all, so every number has the bits it has then.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from fedhet.numerics import gram as inner


def work(task: Mapping[str, Any], memory: mmap.mmap) -> None:
    """Do one of these tasks. Raises ValueError where the function does."""
    rows = [np.frombuffer(memory, np.float32, task["size"], at) for at in task["rows"]]
    {"gram": gram, "reduce": reduce}[task["do"]](task, memory, rows)


def gram(task: Mapping[str, Any], memory: mmap.mmap, rows: list[np.ndarray]) -> None:
    """Inner products, chunk by chunk."""
    n, at = len(rows), task["out"]
    for part in inner.partials(rows, task["size"]):
        np.frombuffer(memory, np.float64, n * n, at)[:] = part.reshape(-1)
        at += 8 * n * n


def reduce(task: Mapping[str, Any], memory: mmap.mmap, rows: list[np.ndarray]) -> None:
    """A function of each coordinate."""
    import torch

    from fedhet.bases.rule import Blocks
    from fedhet.numerics import plain_data

    torch.set_num_threads(1)
    scales, weights = np.array(task["scales"], dtype=np.float64), np.array(task["weights"], dtype=np.float64)
    shape, matrix = (len(weights), len(rows)), None
    if task["matrix"] is not None:
        matrix = np.frombuffer(memory, np.float64, shape[0] * shape[1], task["matrix"]).reshape(shape)
    function = plain_data.load(task["function"], [import_module(task["module"])])
    out = np.frombuffer(memory, np.float32, task["size"], task["out"])
    Blocks(function, weights, scales, matrix).of([torch.from_numpy(row) for row in rows], torch.from_numpy(out))
