"""Memory that was freed stays with the process, up to a bound: updates come and go at one size, and fresh pages cost
more than what is written into them.

glibc gives the top of its heap back when twice the largest freed block lies there, so a worker that frees one update
after the other would ask for the same pages again and again. It holds for the process and those it forks, and shows in
no result; with another C library nothing is done.
"""

from __future__ import annotations

import ctypes
import platform

TRIM, MAPPED = -1, -3
"""glibc's names for what is set, M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""

FREE = 1 << 28
"""Bytes that may lie free at the top of the heap."""

LARGE = 1 << 25
"""Bytes from which a block has a mapping of its own, which is given back at once; glibc takes no more."""


def keep() -> bool:
    """Set both bounds; whether that was done."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(bool(library.mallopt(what, bound)) for what, bound in ((TRIM, FREE), (MAPPED, LARGE)))
