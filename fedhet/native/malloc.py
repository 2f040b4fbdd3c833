"""Settings of the C library's allocator: freed memory stays with the process, up to a bound.

Updates are allocated and freed at one size, and pages fresh from the kernel cost more than what is written into them.
glibc returns the top of its heap when twice the largest freed block lies there, so a worker that frees one update
after the other would ask for the same pages again and again. The settings hold for the process and those it forks, and
no result depends on them; with another C library nothing is done.
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
    """Set both bounds. False if the C library is not glibc or refuses."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(bool(library.mallopt(what, bound)) for what, bound in ((TRIM, FREE), (MAPPED, LARGE)))
