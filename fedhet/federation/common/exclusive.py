"""One process a folder: a lock that says who holds it, and that a process which was killed lets go of.

The lock is the kernel's (`flock`), so neither `kill -9` nor a power cut leaves one behind; what is written in the file
only tells whoever comes second who was first.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedhet.federation.common.errors import EnrollError
from fedhet.system.file_lock import acquired


@contextlib.contextmanager
def alone(path: Path, doing: str, patience_s: float = 0.5) -> Iterator[None]:
    """Hold the lock file `path` while `doing` something ("serves it"); the folder must exist.

    Raises EnrollError E320 with the holder's process id, and since when it holds it, after `patience_s` seconds.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not acquired(handle, patience_s):
            holder = _holder(handle)
            told = f"process {holder[0]} {holder[1]}" if holder else "another process uses it"
            raise EnrollError("E320", f"{path.parent}: {told}", **({"pid": holder[0]} if holder else {}))
        _sign(handle, doing)
        yield
    finally:
        os.close(handle)


def _sign(handle: int, doing: str) -> None:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = json.dumps({"pid": os.getpid(), "doing": f"{doing} since {since}"}).encode()
    with contextlib.suppress(OSError):  # a full disk leaves the lock without a name, which is a lock all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, text, 0)


def _holder(handle: int) -> tuple[int, str] | None:
    """Process id of who holds it, and what it does since when; None if it has not said so."""
    try:
        about = json.loads(os.pread(handle, 4096, 0))
        return int(about["pid"]), str(about["doing"])
    except (ValueError, KeyError, TypeError):
        return None
