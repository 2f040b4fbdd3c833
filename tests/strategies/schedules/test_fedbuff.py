"""FedBuff: buffer sizes, slots, staleness, duplicates, lost jobs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.sync import Sync

World = Any


def by_client(*seconds: float) -> Any:
    return lambda job: seconds[job.client]


def test_every_size_answers_make_a_version(world: World) -> None:
    w = world(FedBuff(size=2), 3, by_client(1.0, 2.0, 5.0)).run(versions=20)
    assert {len(jobs) for _, jobs, _ in w.versions} == {2}


def test_a_fast_client_may_appear_twice_in_one_buffer(world: World) -> None:
    w = world(FedBuff(size=3), 2, by_client(1.0, 2.5)).run(versions=1)
    assert w.clients_of(1) == [0, 0, 1] and len({j.id for j in w.versions[0][1]}) == 3


def test_size_one_is_fully_asynchronous_with_staleness_counted_in_versions(world: World) -> None:
    w = world(FedBuff(size=1), 3, by_client(1.0, 1.6, 3.3)).run(versions=6)
    assert [w.clients_of(v) for v in range(1, 7)] == [[0], [1], [0], [0], [1], [2]]
    assert [ages for _, _, ages in w.versions] == [[0], [1], [1], [0], [2], [5]]


def test_equal_clients_with_a_full_buffer_are_synchronous_rounds(world: World) -> None:
    a = world(FedBuff(size=4), 4, by_client(*[2.0] * 4)).run(versions=5)
    b = world(Sync(), 4, by_client(*[2.0] * 4)).run(versions=5)
    assert a.versions == b.versions and a.jobs == b.jobs


def test_a_slot_is_refilled_at_once_by_an_idle_client_and_never_more_than_the_slots(world: World) -> None:
    peaks = []
    w = world(FedBuff(size=3, concurrency=4), 20, lambda job: 1.0 + job.client / 10)
    w.combine = lambda jobs, view: peaks.append(view.busy)
    w.run(versions=60)
    assert max(peaks) <= 4 and len({j.client for j in w.jobs}) == 20
    ends = {j.id: j.sent + 1.0 + j.client / 10 for j in w.jobs}
    for job in w.jobs[4:]:
        assert any(abs(job.sent - end) < 1e-6 for end in ends.values())


def test_answers_older_than_the_limit_are_dropped_as_stale(world: World) -> None:
    w = world(FedBuff(size=1, max_staleness=2), 2, by_client(1.0, 5.5)).run(versions=12)
    assert set(w.dropped.values()) == {"stale"} and {w.jobs[i].client for i in w.dropped} == {1}
    assert max(w.staleness()) <= 2
    w.check_ledger()


@pytest.mark.parametrize(("flush", "versions", "left"), [(False, 1, 1), (True, 2, 0)])
def test_the_rest_of_the_buffer_is_combined_at_the_end_only_if_asked(
    world: World, flush: bool, versions: int, left: int
) -> None:
    w = world(FedBuff(size=2, flush=flush), 3, by_client(1.0, 1.5, 9.0)).run(seconds=2.2)
    assert (w.version, len(w.buffer)) == (versions, left)


def test_clients_that_fail_at_once_are_retried_at_the_pace_of_the_pause(world: World) -> None:
    for slots in (None, 1):
        w = world(FedBuff(size=1, concurrency=slots, pause_seconds=5.0), 1, lambda job: 0.0, lambda job: "crash")
        w.run(seconds=21.0)
        assert [j.sent for j in w.jobs] == [0.0, 5.0, 10.0, 15.0, 20.0]


def test_a_failure_that_took_longer_than_the_pause_is_replaced_at_once(world: World) -> None:
    fate = lambda job: "dropout" if job.id == 0 else None  # noqa: E731
    w = world(FedBuff(size=1), 1, lambda job: 3.0, fate).run(versions=1)
    assert [j.sent for j in w.jobs] == [0.0, 3.0]


def test_a_client_that_was_offline_gets_work_when_it_returns(world: World) -> None:
    for slots in (None, 3):
        w = world(FedBuff(size=1, concurrency=slots), 3, lambda job: 1.0, away={2: [(0.0, 7.25), (9.0, 12.0)]})
        w.run(seconds=14.0)
        assert min(j.sent for j in w.jobs if j.client == 2) == 7.25
        assert not any(9.0 <= j.sent < 12.0 for j in w.jobs if j.client == 2)


def test_a_client_that_leaves_gets_no_more_work_and_one_that_joins_does(world: World) -> None:
    script = [(2.5, "leave", 0), (4.0, "join", 7), (6.5, "join", 0)]
    w = world(FedBuff(size=1), 2, lambda job: 1.0, script=script).run(seconds=10.0)
    sent = [j.sent for j in w.jobs if j.client == 0]
    assert sent == [0.0, 1.0, 2.0, 6.5, 7.5, 8.5, 9.5] and min(j.sent for j in w.jobs if j.client == 7) == 4.0


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 7)),
    st.one_of(st.none(), st.integers(0, 3)),
    st.sets(st.integers(0, 60), max_size=30),
    st.lists(st.tuples(st.integers(0, 80), st.sampled_from(["join", "leave"]), st.integers(0, 8)), max_size=6),
)
def test_no_job_is_lost_or_used_twice(
    world: Any, seconds: Any, size: int, slots: Any, limit: Any, lost: Any, script: Any
) -> None:
    time = lambda job: seconds[job.client % len(seconds)] / 4  # noqa: E731
    fate = lambda job: "dropout" if job.id in lost else None  # noqa: E731
    moves = [(t / 4, what, c) for t, what, c in script if what == "join" or c < len(seconds)]
    schedule = FedBuff(size, slots, limit, flush=True)
    w = world(schedule, len(seconds), time, fate, script=moves).run(seconds=30.0, versions=100)
    w.check_ledger()
    assert not w.buffer and max(Counter(j.client for j in w.inflight.values()).values(), default=0) <= 1


@pytest.mark.parametrize("field", ["size=0", "concurrency=0", "max_staleness=-1", "pause_seconds=0"])
def test_values_out_of_range_are_named(field: str) -> None:
    name, value = field.split("=")
    with pytest.raises(ValueError, match=field):
        FedBuff(**{name: int(value)})  # type: ignore[arg-type]
