"""What a live run tells whoever follows it beside its progress: who did not answer, who is left out and why.

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
LONGEST = 1000
"""Characters of a message that are kept."""


@dataclass
class Notices:
    """Writes a run's messages."""

    folder: Path
    clock: Callable[[], float] = time.time
    ticks: Callable[[], float] = time.monotonic
    _said: dict[str, tuple[str, float]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Tell something, in the file and on standard output, which is the run's log."""
        text = shown(text)[:LONGEST]
        print(text, flush=True)
        try:
            with (self.folder / NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": int(self.clock()), "text": text}) + "\n")
        except OSError as error:
            log.warning("the message could not be written down: %s", error)

    def repeat(self, topic: str, text: str, every_s: float) -> None:
        """Tell it now if it is news on this topic, else once in so many seconds."""
        before, at = self._said.get(topic, ("", 0.0))
        if text != before or self.ticks() - at >= every_s:
            self._said[topic] = (text, self.ticks())
            self.say(text)


@dataclass
class Reader:
    """Reads what is new in a run's messages."""

    folder: Path
    _seen: int = 0

    def __call__(self) -> list[str]:
        """The messages that came since the last call."""
        path = self.folder / NAME
        rows = read_rows(path) if path.is_file() else []
        new, self._seen = rows[self._seen :], len(rows)
        return [str(row["text"]) for row in new]
