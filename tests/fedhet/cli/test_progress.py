"""The progress line of a run."""

from __future__ import annotations

import io
import threading
import time

import pytest

from fedhet.cli.progress import WINDOW_S, Bar, Pace, clock, told_if_long


def test_the_pace_is_tasks_per_second_and_the_time_the_rest_will_take() -> None:
    pace = Pace()
    assert pace(100.0, 0, 0.0) == ""
    assert pace(102.0, 50, 0.1) == ", 25 tasks/s, 0:18 left"
    assert pace(104.0, 55, 0.5) == ", 14 tasks/s, 0:04 left"


def test_only_the_last_seconds_count() -> None:
    pace = Pace()
    for second in range(100):
        pace(float(second), 10 * second, second / 1000)
    slow = [pace(99.0 + i, 990 + i, 0.099 + 1e-4 * i) for i in range(1, int(WINDOW_S) + 1)]
    assert slow[-1] == ", 1.0 tasks/s, 2:29:40 left"


def test_without_a_limit_or_without_progress_no_time_is_promised() -> None:
    pace = Pace()
    pace(0.0, 0, None)
    assert pace(2.0, 3, None) == ", 1.5 tasks/s"
    still = Pace()
    still(0.0, 0, 0.3)
    assert still(5.0, 0, 0.3) == ", 0.0 tasks/s"
    assert still(6.0, 12, 1.0) == ", 2.0 tasks/s"


@pytest.mark.parametrize(("seconds", "told"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (11_100, "3:05:00")])
def test_durations_read_as_people_write_them(seconds: float, told: str) -> None:
    assert clock(seconds) == told


def test_a_plain_line_carries_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 16.0])
    monkeypatch.setattr("fedhet.cli.progress.time.monotonic", lambda: next(seconds))
    stream = io.StringIO()
    with Bar("run", stream) as show:
        show({"t": 1.0, "version": 1, "tasks": 0, "accuracy": None, "share": 0.0})
        show({"t": 9.0, "version": 2, "tasks": 30, "accuracy": 0.5, "share": 0.25})
    assert stream.getvalue().splitlines()[-1] == (
        "run:  25% version 2, 9.0 s, 30 tasks, accuracy 0.500, 5.0 tasks/s, 0:18 left"
    )


def test_a_long_version_is_reported_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("fedhet.cli.progress.time.monotonic", lambda: now[0])
    stream, at = io.StringIO(), []
    with Bar("run", stream) as show:
        for second in range(200):
            now[0], before = float(second), stream.tell()
            show({"t": 0.0, "version": 0, "tasks": 10 * second, "given": 50_000, "accuracy": None, "share": 0.0})
            at += [second] if stream.tell() > before else []
    assert at == [0, 5, 15, 35, 75, 135, 195]
    assert "50 of 50000 tasks" in stream.getvalue()


def test_what_takes_long_before_a_run_is_named_and_no_thread_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with told_if_long("building", 0.01):
        time.sleep(0.2)
    assert capsys.readouterr().err == "building\n"
    with told_if_long("building", 60.0):
        pass
    assert capsys.readouterr().err == "" and threading.active_count() == before
