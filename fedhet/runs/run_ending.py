"""How a live run ended, if not by its result: one small file in its folder, written whole and last by the run itself.

A process that was killed, or whose SuperLink died under it, writes none. So whoever finds a run folder without a
process, a result and this file knows that the run is to go on, whatever Flower calls its end.
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
TRACE = 4000
"""Characters of a traceback that are kept: its end."""


@dataclass(frozen=True, slots=True)
class RunEnding:
    """`how` is one of FAILED, STOPPED and GIVEN_UP; `why` is a line, `trace` a traceback or a log's end, or empty."""

    how: str
    why: str
    trace: str = ""

    def write(self, folder: Path) -> None:
        """Put it into a run's folder. Raises OSError."""
        write_atomic(folder / NAME, json.dumps(asdict(self), indent=1) + "\n")


def read(folder: Path) -> RunEnding | None:
    """How the run in a folder ended; None if it has a result, goes on, was killed, or never began."""
    try:
        given = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        return None
    return RunEnding(str(given["how"]), str(given["why"]), str(given["trace"]))


def clear(folder: Path) -> None:
    """The run in a folder goes on."""
    (folder / NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def recorded(folder: Path, environment: Callable[[Exception], bool]) -> Iterator[None]:
    """Write down what a run raises, unless its `environment` raised it: that is no end of the run."""
    clear(folder)
    try:
        yield
    except Exception as error:
        if not environment(error):
            end = RunEnding(FAILED, f"{type(error).__name__}: {error}", traceback.format_exc()[-TRACE:])
            try:
                end.write(folder)
            except OSError as full:  # then it counts as killed, and is started again so many times
                error.add_note(f"and this could not be written to {folder / NAME}: {full}")
        raise
