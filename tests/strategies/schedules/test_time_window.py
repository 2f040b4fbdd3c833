"""Time windows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.schedules.sync import Sync
from strategies.schedules.time_window import TimeWindow

World = Any


def by_client(*seconds: float) -> Any:
    return lambda job: seconds[job.client]


def test_a_window_closes_by_time_and_takes_late_answers_along(world: World) -> None:
    w = world(TimeWindow(2.0), 3, by_client(1.0, 2.0, 3.0)).run(versions=2)
    assert [(t, [j.client for j in jobs], ages) for t, jobs, ages in w.versions] == [
        (2.0, [0, 1], [0, 0]),
        (4.0, [0, 1, 2], [0, 0, 1]),
    ]


def test_a_window_closes_by_number_and_the_next_begins_there(world: World) -> None:
    w = world(TimeWindow(10.0, goal=2), 3, by_client(1.0, 2.0, 50.0)).run(versions=3)
    assert [t for t, _, _ in w.versions] == [2.0, 4.0, 6.0]


def test_with_too_few_answers_a_window_is_extended_by_its_length(world: World) -> None:
    w = world(TimeWindow(2.0, min_updates=2), 2, by_client(1.0, 5.0)).run(versions=1)
    assert w.versions[0][0] == 6.0 and w.clients_of(1) == [0, 1]


def test_if_no_client_is_training_the_resting_ones_continue(world: World) -> None:
    w = world(TimeWindow(2.0, min_updates=3), 2, by_client(1.0, 1.0)).run(versions=1)
    assert w.versions[0][0] == 4.0 and w.clients_of(1) == [0, 0, 1, 1]


def test_old_answers_are_dropped_as_stale(world: World) -> None:
    w = world(TimeWindow(1.0, max_staleness=1), 2, by_client(0.5, 2.5)).run(seconds=9.9)
    assert set(w.dropped.values()) == {"stale"} and {w.jobs[i].client for i in w.dropped} == {1}
    w.check_ledger()


def test_after_receipt_a_client_goes_on_at_once(world: World) -> None:
    w = world(TimeWindow(4.0, broadcast="receipt"), 1, by_client(1.5)).run(versions=1)
    assert [j.sent for j in w.jobs] == [0.0, 1.5, 3.0] and len(w.versions[0][1]) == 2


def test_equal_clients_and_a_goal_of_all_are_synchronous(world: World) -> None:
    a = world(TimeWindow(50.0, goal=4), 4, by_client(*[2.0] * 4)).run(versions=5)
    b = world(Sync(), 4, by_client(*[2.0] * 4)).run(versions=5)
    assert a.jobs == b.jobs and a.versions == b.versions


def test_a_client_that_was_offline_gets_work_when_it_returns(world: World) -> None:
    w = world(TimeWindow(1.0), 2, by_client(0.5, 0.5), away={1: [(0.0, 7.25)]}).run(seconds=9.0)
    assert min(j.sent for j in w.jobs if j.client == 1) == 7.25


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(1, 12),
    st.sets(st.integers(0, 60), max_size=30),
    st.lists(st.tuples(st.integers(0, 80), st.sampled_from(["join", "leave"]), st.integers(0, 8)), max_size=6),
    st.sampled_from(["aggregation", "receipt"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_no_job_is_lost_or_used_twice(
    world: Any, seconds: Any, window: int, lost: Any, script: Any, broadcast: str, least: int, goal: bool
) -> None:
    time = lambda job: seconds[job.client % len(seconds)] / 4 + 0.1  # noqa: E731
    fate = lambda job: "dropout" if job.id in lost else None  # noqa: E731
    moves = [(t / 4, what, c) for t, what, c in script if what == "join" or c < len(seconds)]
    schedule = TimeWindow(window / 4, 5 if goal else None, least, 3, broadcast, flush=True)
    w = world(schedule, len(seconds), time, fate, script=moves).run(seconds=30.0)
    w.check_ledger()
    assert not w.buffer


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("window_seconds=0", {"window_seconds": 0}),
        ("goal=0", {"goal": 0}),
        ("min_updates=3 is above goal=2", {"goal": 2, "min_updates": 3}),
        ("max_staleness=-1", {"max_staleness": -1}),
        ("broadcast='never'", {"broadcast": "never"}),
    ],
)
def test_values_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        TimeWindow(**arguments)
