"""Aggregator processes that die, stop or hang, each at the worst moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from fedhet.hierarchy.processes import Part, Task, Team
from fedhet.system import process_liveness


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    """One process at a time, given up soon."""
    monkeypatch.setattr(process_liveness, "LOOK_S", 0.1)
    monkeypatch.setattr(process_liveness, "PATIENCE_S", 1.0)
    monkeypatch.setattr(process_liveness, "GRACE_S", 0.5)
    one = Team(1, idle=60.0)
    yield one
    one.close()


def signalled(team: Team, number: int) -> None:
    """Send the process a signal and wait until it has arrived."""
    pid = team._processes[0].popen.pid
    os.kill(pid, number)
    os.waitid(os.P_PID, pid, (os.WEXITED if number == signal.SIGKILL else os.WSTOPPED) | os.WNOWAIT)


def rows(team: Team, count: int = 3) -> list[Part]:
    return [team.hold(torch.full((5,), float(n))) for n in range(count)]


def asked(team: Team, count: int = 3) -> Task:
    return team.submit(rows(team, count), [1.0] * count, 1)


def right(task: Task, count: int = 3) -> bool:
    return task.out.values.tolist() == [float(sum(range(count)))] * 5


def before(team: Team, monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None], times: int) -> None:
    """Act before a method's next calls, as often as `times`."""
    real, left = getattr(team, name), [times]

    def call(*arguments: object) -> object:
        if left[0] and team._processes:
            left[0] -= 1
            act()
        return real(*arguments)

    monkeypatch.setattr(team, name, call)


@pytest.mark.parametrize("name", ["_feed", "_collect"])
def test_the_last_process_may_die_before_it_is_fed_or_heard(
    team: Team, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before(team, monkeypatch, name, lambda: signalled(team, signal.SIGKILL), 2)
    task = asked(team)
    team.wait([task])
    assert right(task) and team.started == 3


def test_processes_that_keep_dying_are_an_error(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    before(team, monkeypatch, "_feed", lambda: signalled(team, signal.SIGKILL), 100)
    with pytest.raises(RuntimeError, match=r"died at work \(exit code -9\)"):
        team.wait([asked(team)])


def test_a_dead_process_whose_pipe_is_open_elsewhere_is_detected(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what it started might, or a process that was forked meanwhile: its pipe never ends."""
    monkeypatch.setattr(process_liveness, "PATIENCE_S", 1e9)
    team.resize(1)
    held = os.open(f"/proc/{team._processes[0].popen.pid}/fd/1", os.O_WRONLY)
    signalled(team, signal.SIGSTOP)
    task = asked(team)
    signalled(team, signal.SIGKILL)
    team.wait([task])
    os.close(held)
    assert right(task) and team.deaths == 1


@pytest.mark.parametrize("count", [3, 20_000])
def test_a_process_that_is_stopped_is_given_up_even_with_a_full_pipe(team: Team, count: int) -> None:
    team.resize(1)
    signalled(team, signal.SIGSTOP)
    task = asked(team, count) if count == 3 else team.submit(rows(team, 1) * count, [1.0] * count, 1)
    team.wait([task])
    assert (right(task) if count == 3 else not task.out.values.any()) and team.deaths == 1


def test_what_does_not_fit_into_the_pipe_is_written_by_and_by(team: Team) -> None:
    one = rows(team, 2)[1:]
    tasks = [team.submit(one * 30_000, [1.0] * 30_000, 1) for _ in range(4)]
    team.wait(tasks)
    assert all(task.out.values.tolist() == [30_000.0] * 5 for task in tasks) and not team.deaths


def test_a_process_at_work_is_not_given_up_however_long_it_takes(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_liveness, "LOOK_S", 0.05)
    big = team.hold(torch.ones(1_000_000))
    task = team.submit([big] * 4000, [1.0] * 4000, 1)  # more than `PATIENCE_S` on all but the fastest machines
    team.wait([task])
    assert not team.deaths and float(task.out.values[0]) == 4000.0


def test_stopped_processes_do_not_keep_a_team_from_ending(team: Team) -> None:
    team.resize(1)
    idle = team._processes[0].popen
    signalled(team, signal.SIGSTOP)
    team.resize(0)
    assert idle.returncode == -signal.SIGKILL
    task = asked(team)
    at_work = team._processes[0].popen
    signalled(team, signal.SIGSTOP)
    began = time.monotonic()
    team.close()
    assert time.monotonic() - began < 5.0 and at_work.returncode is not None and not task.done
    team.close = lambda: None  # type: ignore[method-assign]
