"""FedAT: tiers of similar speed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.schedules.fedat import FedAT

World = Any


def by_client(*seconds: float) -> Any:
    return lambda job: seconds[job.client]


def test_clients_are_measured_together_and_then_train_in_tiers_of_similar_speed(world: World) -> None:
    w = world(FedAT(tiers=3), 6, by_client(1.0, 9.0, 1.2, 4.0, 10.0, 5.0)).run(seconds=100.0)
    assert w.versions[0][0] == 10.0 and w.clients_of(1) == [0, 1, 2, 3, 4, 5]
    assert {tuple(j.client for j in jobs) for _, jobs, _ in w.versions[1:]} == {(0, 2), (3, 5), (1, 4)}
    times = {c: [t for t, jobs, _ in w.versions[1:] if jobs[0].client == c] for c in (0, 3, 1)}
    assert times[0][:3] == pytest.approx([11.2, 12.4, 13.6]) and times[3][:2] == [15.0, 20.0]
    assert times[1][:2] == [20.0, 30.0]


def test_one_tier_is_synchronous_training(world: World) -> None:
    w = world(FedAT(tiers=1), 3, by_client(1.0, 2.0, 3.0)).run(versions=5)
    assert [t for t, _, _ in w.versions] == [3.0, 6.0, 9.0, 12.0, 15.0] and set(w.staleness()) == {0}


def test_a_tier_asks_at_most_per_round_of_its_clients(world: World) -> None:
    w = world(FedAT(tiers=2, per_round=2), 10, lambda job: 1.0 + job.client).run(versions=60)
    assert {len(jobs) for _, jobs, _ in w.versions[1:]} == {2}
    assert all(len({j.client < 5 for j in jobs}) == 1 for _, jobs, _ in w.versions[1:])


def test_a_client_that_joins_later_belongs_to_the_last_tier(world: World) -> None:
    w = world(FedAT(tiers=2), 4, lambda job: 1.0 + job.client, script=[(20.0, "join", 9)]).run(seconds=60.0)
    assert any({2, 3, 9} <= {j.client for j in jobs} for _, jobs, _ in w.versions)


def test_a_tier_whose_round_has_no_updates_tries_again_after_the_pause(world: World) -> None:
    fate = lambda job: "crash" if job.client == 1 and job.turn > 0 else None  # noqa: E731
    time = lambda job: 2.0 if job.turn == 0 or job.client == 0 else 0.0  # noqa: E731
    w = world(FedAT(tiers=2, pause_seconds=5.0), 2, time, fate).run(seconds=18.0)
    assert [j.sent for j in w.jobs if j.client == 1] == [0.0, 2.0, 7.0, 12.0, 17.0]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=7),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 3)),
    st.sets(st.integers(0, 60), max_size=30),
    st.lists(st.tuples(st.integers(0, 80), st.sampled_from(["join", "leave"]), st.integers(0, 8)), max_size=6),
)
def test_no_job_is_lost_or_used_twice(world: Any, seconds: Any, tiers: int, most: Any, lost: Any, script: Any) -> None:
    time = lambda job: seconds[job.client % len(seconds)] / 4  # noqa: E731
    fate = lambda job: "dropout" if job.id in lost else None  # noqa: E731
    moves = [(t / 4, what, c) for t, what, c in script if what == "join" or c < len(seconds)]
    w = world(FedAT(tiers, most), len(seconds), time, fate, script=moves).run(seconds=30.0)
    w.check_ledger()
    assert set(w.dropped.values()) <= {"late"}


@pytest.mark.parametrize("field", ["tiers=0", "per_round=0", "pause_seconds=0"])
def test_values_out_of_range_are_named(field: str) -> None:
    name, value = field.split("=")
    with pytest.raises(ValueError, match=field):
        FedAT(**{name: int(value)})
