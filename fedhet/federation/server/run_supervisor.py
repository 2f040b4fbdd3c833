"""Runs outlive their processes: `fedhet serve` starts one again whose process was killed, followed or not.

So a detached run needs nobody, and after a power cut nothing but `fedhet serve`. Whether a run was killed is decided by
what it wrote itself: it is over when its folder holds a result or an ending (fedhet/runs/run_ending.py), and by nothing
else, except that Flower was told to stop it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server.submit import LAST_WORDS_S, Submission
from fedhet.federation.server.superlink import SuperLink
from fedhet.runs.event_log import accepted
from fedhet.runs.run_ending import GIVEN_UP, RunEnding
from fedhet.system.file_lock import occupied

log = logging.getLogger("fedhet.federation")
ASK_S = 15.0
"""Seconds between questions about a run whose process has not been seen yet."""
SHORT_S = 60.0
"""A life that is shorter than this and brought no answer was for nothing."""
FOR_NOTHING = 5
"""Such lives one after the other, after which a run is not started again."""


@dataclass
class Life:
    """What is known of a run's present process: since when, how many answers it found, whether it was seen alive;
    and how many before it were for nothing."""

    run_id: int
    since: float
    accepted: int
    seen: bool = False
    for_nothing: int = 0


@dataclass
class Runs:
    """The runs of the federation that a server keeps alive. `step` often; it never waits for a SuperLink."""

    link: SuperLink
    clock: Callable[[], float] = time.monotonic
    _lives: dict[Path, Life] = field(default_factory=dict)
    _due: dict[Path, float] = field(default_factory=dict)

    def step(self) -> None:
        """Look at every run once. Raises EnrollError E308."""
        for entry, made in Submission.entered(self.link):
            if made is None or made.done or made.ended is not None:
                self._forget(entry, made)
            else:
                self._look(entry, made)

    def _look(self, entry: Path, made: Submission) -> None:
        now, folder = self.clock(), made.folder
        life = self._lives.get(folder)
        if life is None or life.run_id != made.run_id:  # submitted, or resumed, since the last look
            life = self._lives[folder] = Life(made.run_id, -math.inf, accepted(folder))  # nobody knows since when
        if occupied(folder):
            life.seen = True
            self._due[folder] = now + LAST_WORDS_S  # Flower knows by then of one that it was told to stop
        elif now >= self._due.setdefault(folder, now + LAST_WORDS_S) and self.link.listens():
            self._due[folder] = now + ASK_S
            self._judge(entry, made, life)

    def _judge(self, entry: Path, made: Submission, life: Life) -> None:
        """A run without a process and without an ending: not begun yet, stopped by way of Flower, or killed."""
        try:
            status, _ = made.asked()
        except EnrollError as error:
            if error.code != "E315":
                raise
            self._forget(entry, made)  # this SuperLink never had it
            return
        if made.done or made.ended is not None or "stopped" in status:
            log.info("the run in %s is over: %s", made.folder, status)
            self._forget(entry, made)
        elif status.startswith("finished") or life.seen:
            self._revive(entry, made, life)

    def _revive(self, entry: Path, made: Submission, life: Life) -> None:
        now, had = self.clock(), accepted(made.folder)
        wasted = life.for_nothing + 1 if now - life.since < SHORT_S and had == life.accepted else 0
        if wasted >= FOR_NOTHING:
            why = f"its process ended {wasted} times at once, without a result, an error or a single answer"
            log.error("the run in %s is given up: %s", made.folder, why)
            RunEnding(GIVEN_UP, why, made.last_words()).write(made.folder)
            self._forget(entry, made)
            return
        log.warning("the run in %s was killed; it goes on from its journal", made.folder)
        begun = Submission.begin(self.link, made.folder, made.wanted, made.least)
        self._lives[made.folder] = Life(begun.run_id, now, had, for_nothing=wasted)

    def _forget(self, entry: Path, made: Submission | None) -> None:
        entry.unlink()
        if made is not None:
            self._lives.pop(made.folder, None)
            self._due.pop(made.folder, None)
