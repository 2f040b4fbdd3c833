"""One process per folder: a lock file that names the process that has it.

The lock is the kernel's (`flock`), so neither `kill -9` nor a power cut leaves one behind. The file's content is only
for the error message of a second process."""

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
def alone(path: Path, doing: str, timeout_s: float = 0.5) -> Iterator[None]:
    """Context manager: lock the file `path`, in an existing folder. `doing` ("serves it") is shown to a second process.

    Raises EnrollError E320 after `timeout_s` seconds, with process id and start time of the process that has the lock.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not acquired(handle, timeout_s):
            holder = _holder(handle)
            text = f"process {holder[0]} {holder[1]}" if holder else "another process uses it"
            raise EnrollError("E320", f"{path.parent}: {text}", **({"pid": holder[0]} if holder else {}))
        _describe_holder(handle, doing)
        yield
    finally:
        os.close(handle)


def _describe_holder(handle: int, doing: str) -> None:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = json.dumps({"pid": os.getpid(), "doing": f"{doing} since {since}"}).encode()
    with contextlib.suppress(OSError):  # on a full disk the lock works without the description
        os.ftruncate(handle, 0)
        os.pwrite(handle, text, 0)


def _holder(handle: int) -> tuple[int, str] | None:
    """Process id of the process that has the lock, and its description; None if it wrote none."""
    try:
        about = json.loads(os.pread(handle, 4096, 0))
        return int(about["pid"]), str(about["doing"])
    except (ValueError, KeyError, TypeError):
        return None
