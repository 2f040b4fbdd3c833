"""The compiled weighted sum in a process without torch: vectors inside one memory that processes share."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from mmap import mmap

POINTER, MANY = ctypes.c_void_p, ctypes.c_int64
TYPES = (POINTER, POINTER, POINTER, MANY, MANY, ctypes.c_int32)
"""Of the C function `weighted_sum`: out, rows, coefficients, number of rows, their length, threads."""


def load(library: str, memory: mmap) -> Callable[[int, int, Sequence[int], Sequence[float]], None] | None:
    """sum(out, size, rows, coefficients) over this memory, by the library at this path, on one thread: places are
    bytes from its start, `size` is in float32 numbers. None if the library is gone or is another one."""
    try:
        call = ctypes.CDLL(library).weighted_sum
    except (OSError, AttributeError):
        return None
    call.argtypes, call.restype = TYPES, None
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def run(out: int, size: int, rows: Sequence[int], coefficients: Sequence[float]) -> None:
        n = len(rows)
        addresses, factors = (POINTER * n)(*[base + at for at in rows]), (ctypes.c_float * n)(*coefficients)
        call(base + out, addresses, factors, n, size, 1)

    return run
