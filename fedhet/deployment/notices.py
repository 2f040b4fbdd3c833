"""Notices of a live run, next to its progress: which clients have not answered, which are left out and why.

One JSON line each in `messages.jsonl` of the run folder. Names and texts that came from a device are shown with their
control characters spelled out.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedhet.display import shown
from fedhet.runs.event_log import read_rows

log = logging.getLogger("fedhet.run")
NAME = "messages.jsonl"
MAX_CHARACTERS = 1000
"""Longest notice, in characters; longer ones are cut."""


@dataclass
class Notices:
    """Writes a run's notices."""

    folder: Path
    clock: Callable[[], float] = time.time
    ticks: Callable[[], float] = time.monotonic
    _said: dict[str, tuple[str, float]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Write a notice to the file and to standard output, which is the ServerApp's log."""
        text = shown(text)[:MAX_CHARACTERS]
        print(text, flush=True)
        try:
            with (self.folder / NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": int(self.clock()), "text": text}) + "\n")
        except OSError as error:
            log.warning("the notice could not be written: %s", error)

    def repeat(self, topic: str, text: str, every_s: float) -> None:
        """Write a notice if its text is new for this topic, else at most once in `every_s` seconds."""
        before, at = self._said.get(topic, ("", 0.0))
        if text != before or self.ticks() - at >= every_s:
            self._said[topic] = (text, self.ticks())
            self.say(text)


@dataclass
class Reader:
    """Reads the new notices of a run."""

    folder: Path
    _seen: int = 0

    def __call__(self) -> list[str]:
        """The notices since the last call."""
        path = self.folder / NAME
        rows = read_rows(path) if path.is_file() else []
        new, self._seen = rows[self._seen :], len(rows)
        return [str(row["text"]) for row in new]
