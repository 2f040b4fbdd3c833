"""Restart of submitted runs: `fedhet serve` starts a run again whose ServerApp process was killed.

A detached run therefore needs no terminal and, after a power cut, only `fedhet serve`. A run is over when its folder
contains a result or an ending (fedhet/runs/run_ending.py), or when Flower was asked to stop it; otherwise a missing
process was killed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server.submit import STOP_NOTICE_S, Submission
from fedhet.federation.server.superlink import SuperLink
from fedhet.runs.event_log import accepted
from fedhet.runs.run_ending import GIVEN_UP, RunEnding
from fedhet.system.file_lock import occupied

log = logging.getLogger("fedhet.federation")
ASK_S = 15.0
"""Seconds between status requests for a run whose process has not been seen yet."""
MIN_LIFE_S = 60.0
"""Seconds: a process that ends sooner, without an accepted update, counts as a failed start."""
MAX_FAILED_STARTS = 5
"""Failed starts in succession after which a run is not started again."""


@dataclass
class ProcessState:
    """The present process of a run: when it was started (seconds of `clock`), how many updates were accepted before it,
    whether it was seen alive, and the failed starts in succession before it."""

    run_id: int
    since: float
    accepted: int
    seen: bool = False
    failed_starts: int = 0


@dataclass
class Runs:
    """The submitted runs of a federation. Call `step` often; it never waits for a SuperLink."""

    link: SuperLink
    clock: Callable[[], float] = time.monotonic
    _processes: dict[Path, ProcessState] = field(default_factory=dict)
    _due: dict[Path, float] = field(default_factory=dict)

    def step(self) -> None:
        """Check every run once. Raises EnrollError E308."""
        for entry, made in Submission.submitted(self.link):
            if made is None or made.done or made.ended is not None:
                self._forget(entry, made)
            else:
                self._check(entry, made)

    def _check(self, entry: Path, made: Submission) -> None:
        now, folder = self.clock(), made.folder
        process = self._processes.get(folder)
        if process is None or process.run_id != made.run_id:  # submitted or resumed since the last step
            process = self._processes[folder] = ProcessState(
                made.run_id, -math.inf, accepted(folder)
            )  # its start time is not known
        if occupied(folder):
            process.seen = True
            self._due[folder] = now + STOP_NOTICE_S  # by then Flower reports a run that it was asked to stop
        elif now >= self._due.setdefault(folder, now + STOP_NOTICE_S) and self.link.listens():
            self._due[folder] = now + ASK_S
            self._decide(entry, made, process)

    def _decide(self, entry: Path, made: Submission, process: ProcessState) -> None:
        """Decide about a run without a process and without an ending: not started yet, stopped through Flower, or
        killed."""
        try:
            status, _ = made.status_now()
        except EnrollError as error:
            if error.code != "E315":
                raise
            self._forget(entry, made)  # this SuperLink does not have the run
            return
        if made.done or made.ended is not None or "stopped" in status:
            log.info("the run in %s is over: %s", made.folder, status)
            self._forget(entry, made)
        elif status.startswith("finished") or process.seen:
            self._restart(entry, made, process)

    def _restart(self, entry: Path, made: Submission, process: ProcessState) -> None:
        now, had = self.clock(), accepted(made.folder)
        failed_starts = process.failed_starts + 1 if now - process.since < MIN_LIFE_S and had == process.accepted else 0
        if failed_starts >= MAX_FAILED_STARTS:
            why = f"its process ended {failed_starts} times at once, without a result, error or accepted update"
            log.error("the run in %s is given up: %s", made.folder, why)
            RunEnding(GIVEN_UP, why, made.log_end()).write(made.folder)
            self._forget(entry, made)
            return
        log.warning("the run in %s was killed; it is restarted from its journal", made.folder)
        begun = Submission.begin(self.link, made.folder, made.wanted, made.least)
        self._processes[made.folder] = ProcessState(begun.run_id, now, had, failed_starts=failed_starts)

    def _forget(self, entry: Path, made: Submission | None) -> None:
        entry.unlink()
        if made is not None:
            self._processes.pop(made.folder, None)
            self._due.pop(made.folder, None)
