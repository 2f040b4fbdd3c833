"""How a live run without a result ended: one small file in its folder, written atomically and last by the run itself.

A process that was killed, or whose SuperLink failed, writes none. So a run folder without a process, a result and this
file is a run to resume, whatever status Flower reports.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fedhet.runs.event_log import write_atomic

NAME = "ended.json"
FAILED, STOPPED, GIVEN_UP = "failed", "stopped", "given up"
MAX_TRACE = 4000
"""Characters of a traceback that are stored: its end."""


@dataclass(frozen=True, slots=True)
class RunEnding:
    """`how` is one of FAILED, STOPPED and GIVEN_UP; `why` is a line, `trace` a traceback or a log's end, or empty."""

    how: str
    why: str
    trace: str = ""

    def write(self, folder: Path) -> None:
        """Write it to a run's folder. Raises OSError."""
        write_atomic(folder / NAME, json.dumps(asdict(self), indent=1) + "\n")


def read(folder: Path) -> RunEnding | None:
    """How the run in a folder ended; None if it has a result, is running, was killed, or never began."""
    try:
        given = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        return None
    return RunEnding(str(given["how"]), str(given["why"]), str(given["trace"]))


def clear(folder: Path) -> None:
    """Delete the file: the run in a folder continues."""
    (folder / NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def recorded(folder: Path, environment: Callable[[Exception], bool]) -> Iterator[None]:
    """A context manager that records an exception as the run's end, unless `environment` returns True for it: then the
    run can be resumed."""
    clear(folder)
    try:
        yield
    except Exception as error:
        if not environment(error):
            end = RunEnding(FAILED, f"{type(error).__name__}: {error}", traceback.format_exc()[-MAX_TRACE:])
            try:
                end.write(folder)
            except OSError as full:  # then the run counts as killed, and is restarted a limited number of times
                error.add_note(f"and this could not be written to {folder / NAME}: {full}")
        raise
