"""Locks on files, which are the kernel's: each ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

RUN = "journal.lock"
"""In a run folder: held by the server process that works on it."""
LOOK_S = 0.02
"""Seconds between tries to get a lock."""


def acquired(handle: int, seconds: float, *, shared: bool = False) -> bool:
    """Whether a lock on an open file was got within so many seconds: exclusive, or shared with others who only look.

    It is given up when the file is closed, here and in every process that inherited it.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(LOOK_S)


def occupied(folder: Path) -> bool:
    """Whether a living server process works on a run folder of this machine."""
    if not (folder / RUN).exists():
        return False
    with (folder / RUN).open() as file:
        return not acquired(file.fileno(), 0.0, shared=True)
