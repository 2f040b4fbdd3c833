"""Runs outlive their processes: `fedhet serve` starts one again whose process was killed, followed or not.

So a detached run needs nobody, and after a power cut nothing but `fedhet serve`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedhet.enroll.errors import EnrollError
from fedhet.enroll.flower import SuperLink
from fedhet.enroll.submit import LAST_WORDS_S, VANISHED, Submission
from fedhet.journal import occupied

log = logging.getLogger("fedhet.enroll")
ASK_S = 15.0
"""Seconds between questions about a run whose process has not been seen yet."""
LIVES = 20
"""How often a run is started again by one server."""


@dataclass
class Runs:
    """The runs of the federation that a server keeps alive. `step` often; it never waits for a SuperLink."""

    link: SuperLink
    clock: Callable[[], float] = time.monotonic
    lives: dict[Path, int] = field(default_factory=dict)
    _alive: set[int] = field(default_factory=set)
    _due: dict[Path, float] = field(default_factory=dict)

    def step(self) -> None:
        """Look at every run once. Raises EnrollError E308."""
        for entry, made in Submission.entered(self.link):
            if made is None or made.done:
                entry.unlink()
            else:
                self._look(entry, made)

    def _look(self, entry: Path, made: Submission) -> None:
        now, folder = self.clock(), made.folder
        if occupied(folder):
            self._alive.add(made.run_id)
            self._due[folder] = now + LAST_WORDS_S  # Flower knows by then of one that ended by itself
        elif now >= self._due.setdefault(folder, now + LAST_WORDS_S) and self.link.listens():
            self._due[folder] = now + ASK_S
            self._judge(entry, made)

    def _judge(self, entry: Path, made: Submission) -> None:
        """A run without a process: not begun yet, over, or killed, of which Flower hears a minute later."""
        try:
            status, details = made.asked()
        except EnrollError as error:
            if error.code != "E315":
                raise
            status, details = "finished: this SuperLink never had it", ""
        over = status.startswith("finished")
        if made.done or (over and VANISHED not in details):
            log.info("the run in %s is %s", made.folder, status)
            entry.unlink()
        elif over or made.run_id in self._alive:
            self.lives[made.folder] = self.lives.get(made.folder, 0) + 1
            if self.lives[made.folder] > LIVES:
                log.error("the run in %s was killed %d times; it is left alone", made.folder, LIVES)
                entry.unlink()
                return
            log.warning("the run in %s was killed; it goes on from its journal", made.folder)
            Submission.begin(self.link, made.folder, made.wanted)
