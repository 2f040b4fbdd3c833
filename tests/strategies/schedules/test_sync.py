"""Synchronous rounds: cohorts, deadlines, over-selection, lost jobs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.schedules.sync import Sync

World = Any


def by_client(*seconds: float) -> Any:
    return lambda job: seconds[job.client]


def test_all_clients_are_waited_for_and_start_again_together(world: World) -> None:
    w = world(Sync(), 3, by_client(1.0, 2.0, 5.0)).run(versions=3)
    assert [t for t, _, _ in w.versions] == [5.0, 10.0, 15.0]
    assert all([j.client for j in jobs] == [0, 1, 2] and ages == [0, 0, 0] for _, jobs, ages in w.versions)


def test_a_cohort_has_per_round_members_drawn_at_random(world: World) -> None:
    w = world(Sync(per_round=2), 6, by_client(*[1.0] * 6)).run(versions=40)
    sizes = {len(jobs) for _, jobs, _ in w.versions}
    assert sizes == {2} and set(w.turns) == set(range(6))


def test_over_selection_closes_at_the_goal_and_drops_the_rest_as_late(world: World) -> None:
    w = world(Sync(per_round=2, over_selection=1.5), 3, by_client(1.0, 2.0, 9.0)).run(seconds=9.5)
    assert w.clients_of(1) == [0, 1] and w.versions[0][0] == 2.0
    assert list(w.dropped.values()) == ["late"]
    assert [w.jobs[i].client for i in w.dropped] == [2]
    w.check_ledger()


def test_an_answer_exactly_at_the_deadline_is_on_time(world: World) -> None:
    w = world(Sync(deadline_seconds=3.0), 3, by_client(1.0, 3.0, 4.0)).run(versions=1)
    assert w.versions[0][0] == 3.0 and w.clients_of(1) == [0, 1]


def test_after_the_deadline_a_round_waits_for_its_least_number_of_updates(world: World) -> None:
    w = world(Sync(deadline_seconds=1.5, min_updates=2), 3, by_client(1.0, 4.0, 6.0)).run(versions=1)
    assert w.versions[0][0] == 4.0 and w.clients_of(1) == [0, 1]


def test_failed_members_do_not_block_a_round(world: World) -> None:
    fate = lambda job: "dropout" if job.client == 1 else None  # noqa: E731
    w = world(Sync(), 3, by_client(1.0, 7.0, 2.0), fate).run(versions=2)
    assert w.versions[0][0] == 7.0 and w.clients_of(1) == [0, 2]


def test_a_round_without_updates_is_followed_by_another_after_the_pause(world: World) -> None:
    fate = lambda job: "crash" if job.turn < 2 else None  # noqa: E731
    w = world(Sync(pause_seconds=10.0), 2, by_client(0.0, 0.0), fate).run(versions=1)
    assert [j.sent for j in w.jobs[::2]] == [0.0, 10.0, 20.0]


def test_too_few_answers_are_dropped_with_that_reason(world: World) -> None:
    fate = lambda job: "dropout" if job.client and not job.turn else None  # noqa: E731
    w = world(Sync(min_updates=2), 2, by_client(1.0, 1.0), fate).run(versions=1)
    assert list(w.dropped.values()) == ["too few"] and w.clients_of(1) == [0, 1]


def test_with_nobody_online_the_round_opens_when_somebody_returns(world: World) -> None:
    away = {0: [(0.0, 30.0)], 1: [(0.0, 50.0)]}
    w = world(Sync(), 2, by_client(1.0, 1.0), away=away).run(versions=1)
    assert w.versions[0][0] == 31.0 and w.clients_of(1) == [0]


def test_a_federation_of_absentees_starts_with_the_first_to_join(world: World) -> None:
    w = world(Sync(), 2, by_client(1.0, 1.0), absent=frozenset({0, 1}), script=[(8.0, "join", 1)]).run(versions=1)
    assert w.versions[0][0] == 9.0 and w.clients_of(1) == [1]


def test_a_member_that_leaves_before_its_job_is_sent_is_not_waited_for(world: World) -> None:
    script = [(2.0, "leave", 1)]  # at the second the next round opens, before its jobs are on their way
    w = world(Sync(), 2, by_client(2.0, 2.0), script=script).run(versions=3)
    assert [w.clients_of(v) for v in (1, 2, 3)] == [[0, 1], [0], [0]]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=6),
    st.sets(st.integers(0, 40), max_size=20),
    st.sampled_from([Sync(), Sync(2), Sync(2, 2.0, 2.5), Sync(None, 1.0, 1.0), Sync(1, 3.0, None, 1, 0.5)]),
)
def test_no_job_is_lost_or_used_twice(world: Any, seconds: Any, lost: Any, schedule: Sync) -> None:
    fate = lambda job: "dropout" if job.id in lost else None  # noqa: E731
    fresh = Sync(*(getattr(schedule, f) for f in list(Sync.__dataclass_fields__)[:5]))
    w = world(fresh, len(seconds), lambda job: seconds[job.client] / 10, fate).run(versions=12)
    w.check_ledger()
    assert w.version == 12 and set(w.staleness()) == {0}


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("per_round=0", {"per_round": 0}),
        ("over_selection=0.5", {"per_round": 3, "over_selection": 0.5}),
        ("over_selection=2", {"over_selection": 2}),
        ("deadline_seconds=0", {"deadline_seconds": 0}),
        ("min_updates=5", {"per_round": 3, "min_updates": 5}),
        ("pause_seconds=-1", {"pause_seconds": -1}),
    ],
)
def test_values_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        Sync(**arguments)
