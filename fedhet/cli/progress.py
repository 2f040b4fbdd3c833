"""Progress of a run on standard error: a bar on a terminal, otherwise a line every few seconds.

It is drawn from the engine's callback, without a thread.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from fedhet.display import shown

LINE_INTERVAL_S, LONGEST_SECONDS = 5.0, 60.0
"""Between two lines where there is no terminal; twice as long each time within one version, up to the longest."""
MANY = 1000
"""Jobs under way from which a line says how many were given out."""

BUILD_SECONDS = 2.0
"""What is built before a run is named if it takes longer."""

WINDOW_S = 30.0
"""Seconds of real time over which the rate is measured."""


class Pace:
    """Client tasks per second and estimated time left, from the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, float]] = deque()

    def __call__(self, now: float, tasks: int, share: float | None) -> str:
        """Record a run's state at the second `now` and return the text; "" before there is a difference to measure."""
        done = share or 0.0
        self._seen.append((now, tasks, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        then, before, began = self._seen[0]
        if now <= then:
            return ""
        rate, speed = (tasks - before) / (now - then), (done - began) / (now - then)
        left = f", {clock((1.0 - done) / speed)} left" if share is not None and share < 1.0 and speed > 0 else ""
        return f", {rate:.{0 if rate >= 10 else 1}f} tasks/s{left}"


def clock(seconds: float) -> str:
    """A duration as text: 0:07, 12:30, 3:05:00."""
    total = round(seconds)
    hours, minutes = divmod(total // 60, 60)
    return f"{hours}:{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"


@contextlib.contextmanager
def told_if_long(text: str, seconds: float = BUILD_SECONDS) -> Iterator[None]:
    """A line on standard error if what is done inside takes longer than so many seconds. The thread that waits for
    that has ended when this ends, so that no process is forked beside it."""
    line = threading.Timer(seconds, lambda: print(shown(text), file=sys.stderr, flush=True))
    line.daemon = True
    line.start()
    try:
        yield
    finally:
        line.cancel()
        line.join()


class Bar:
    """`with Bar("name") as show: ... show({...})`; the mapping is that of `fedhet.runs.experiment.Progress`."""

    def __init__(self, name: str, stream: IO[str] | None = None) -> None:
        self.name, self._stream = shown(name), stream if stream is not None else sys.stderr
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._next, self._pause, self._version = 0.0, LINE_INTERVAL_S, -1
        self._seen = False
        self._pace = Pace()

    def __enter__(self) -> Bar:
        console = Console(file=self._stream)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold cyan", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[told]}", markup=False),
                TimeElapsedColumn(),
                console=console,
                auto_refresh=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=1.0, told="starting")
            self._bar.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, texts: Sequence[str]) -> None:
        """Lines above the bar."""
        for text in map(shown, texts):
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=self._stream, flush=True)

    def __call__(self, row: Mapping[str, Any]) -> None:
        share, now = row.get("share"), time.monotonic()
        told = shown(describe(row)) + self._pace(now, row["tasks"], share)
        if self._bar is not None:
            total = 1.0 if share is not None else None
            self._bar.update(self._task, total=total, completed=share or 0.0, told=told, refresh=True)
            return
        if now >= self._next or (share == 1.0 and not self._seen):
            same, self._version = row["version"] == self._version, row["version"]
            self._pause = min(2 * self._pause, LONGEST_SECONDS) if same else LINE_INTERVAL_S
            self._next, self._seen = now + self._pause, share == 1.0
            part = "" if share is None else f"{share:4.0%} "
            print(f"{self.name}: {part}{told}", file=self._stream, flush=True)


def describe(row: Mapping[str, Any]) -> str:
    """One line: versions, seconds of the run's clock, client jobs, accuracy if it was measured."""
    accuracy = row.get("accuracy")
    told = "" if accuracy is None else f", accuracy {accuracy:.3f}"
    given = row.get("given", 0)
    of = f" of {given}" if given - row["tasks"] >= MANY else ""
    return f"version {row['version']}, {row['t']:.1f} s, {row['tasks']}{of} tasks{told}"
