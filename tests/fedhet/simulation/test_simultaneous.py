"""Threads on a grid, one at a time, in an order that depends on tasks and the virtual clock alone."""

import threading
from types import SimpleNamespace

import pytest

from fedhet.simulation.simultaneous import Crew


class Grid:
    """Replies at given times: a message is named by the second it arrives at, "7" or "7.a"."""

    def __init__(self):
        self.at, self.crew, self.sent = 0.0, Crew(self), []

    def now(self):
        return self.at

    def wait(self, until):
        times = [float(name.partition("-")[0]) for name in self.sent]
        at = min([*times, *([] if until is None else [until])], default=None)
        if at is None:
            raise TimeoutError("nothing will come")
        self.at = max(self.at, at)

    def arrived(self, wanted):
        for name in sorted(set(self.sent) & set(wanted)):
            if float(name.partition("-")[0]) <= self.at:
                self.sent.remove(name)
                yield SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=name))

    def exchange(self, names, timeout=None):
        self.sent += names
        return len(self.crew.exchange(names, None if timeout is None else self.at + timeout))


@pytest.fixture
def grid():
    before = threading.active_count()
    yield Grid()
    assert threading.active_count() == before


def test_all_send_before_time_passes_and_go_on_in_the_order_of_arrival(grid):
    told = []

    def task(name):
        told.append((grid.now(), name))
        grid.exchange([name])
        told.append((grid.now(), name))

    grid.crew.run([lambda n=n: task(n) for n in ("3-a", "1-b", "2-c", "1-d")])
    assert told == [(0, "3-a"), (0, "1-b"), (0, "2-c"), (0, "1-d"), (1, "1-b"), (1, "1-d"), (2, "2-c"), (3, "3-a")]


def test_no_more_begin_than_may_be_at_work(grid):
    begun = []

    def task(name):
        begun.append(grid.now())
        grid.exchange([name])

    grid.crew.run([lambda n=n: task(n) for n in ("2-a", "3-b", "4-c", "5-d")], at_once=2)
    assert begun == [0, 0, 2, 3]


def test_a_deadline_brings_what_there_is(grid):
    got = []
    grid.crew.run([lambda: got.append((grid.exchange(["1", "9"], 5), grid.now())), lambda: grid.exchange(["2"])])
    assert got == [(1, 5.0)]


def test_nothing_sent_is_nothing_waited_for(grid):
    grid.crew.run([lambda: grid.exchange([]), lambda: None])
    grid.crew.run([])
    assert grid.now() == 0


def test_when_nothing_will_come_the_run_ends_and_every_task_with_it(grid):
    seen = []

    def task():
        try:
            grid.crew.exchange(["no answer"], None)
        except RuntimeError as error:
            seen.append(str(error))

    with pytest.raises(TimeoutError, match="nothing will come"):
        grid.crew.run([task, task])
    assert seen == [f"the run ended while task {n} waited for replies" for n in (0, 1)]


def test_a_crew_has_no_crew(grid):
    failed = []

    def task():
        try:
            grid.crew.run([lambda: None])
        except RuntimeError as error:
            failed.append(str(error))

    grid.crew.run([task])
    assert failed and "threads of its own" in failed[0]
