"""FedFix: combinations at fixed times."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedfix import FedFix
from strategies.schedules.sync import Sync

World = Any
TAUS = tuple(1 - 0.8 * i / 9 for i in range(10))
"""Ten clients on a linear grid of response times, the slowest 1.0 and the fastest 0.2."""


def by_client(*seconds: float) -> Any:
    return lambda job: seconds[job.client]


def test_what_has_come_by_the_close_is_combined_and_only_that(world: World) -> None:
    w = world(FedFix(2.0), 3, by_client(1.0, 2.0, 3.5)).run(seconds=4.5)
    assert [(t, [j.client for j in jobs], ages) for t, jobs, ages in w.versions] == [
        (2.0, [0, 1], [0, 0]),
        (4.0, [0, 1, 2], [0, 0, 1]),
    ]


def test_staleness_is_the_number_of_windows_a_task_takes_less_one(world: World) -> None:
    w = world(FedFix(0.2), 10, by_client(*TAUS)).run(seconds=20.1)
    want = [5, 5, 5, 4, 4, 3, 3, 2, 2, 1]
    ages = {(j.client, u) for _, jobs, us in w.versions for j, u in zip(jobs, us, strict=True)}
    assert ages == {(c, n - 1) for c, n in enumerate(want)}
    assert [round(t, 9) for t, _, _ in w.versions[:5]] == [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize("window", [1.0, 1.7])
def test_a_window_as_long_as_the_slowest_client_is_synchronous(world: World, window: float) -> None:
    a = world(FedFix(window), 10, by_client(*TAUS)).run(versions=6)
    b = world(Sync(), 10, by_client(*TAUS)).run(versions=6)
    assert [[(j.client, j.version, j.turn) for j in jobs] for _, jobs, _ in a.versions] == [
        [(j.client, j.version, j.turn) for j in jobs] for _, jobs, _ in b.versions
    ]
    assert [t for t, _, _ in a.versions] == pytest.approx([window * n for n in range(1, 7)])


def test_equal_clients_and_a_window_of_their_time_are_synchronous_bit_for_bit(world: World) -> None:
    a = world(FedFix(0.3), 4, by_client(*[0.3] * 4)).run(versions=9)
    b = world(Sync(), 4, by_client(*[0.3] * 4)).run(versions=9)
    assert a.jobs == b.jobs and a.versions == b.versions


def test_tiny_windows_order_contributions_as_asynchronous_training_does(world: World) -> None:
    seconds = (1.0, 0.731, 0.337, 0.219)
    a = world(FedFix(1e-4), 4, by_client(*seconds)).run(seconds=5.0)
    b = world(FedBuff(size=1), 4, by_client(*seconds)).run(seconds=5.0)
    order = [[j.client for _, jobs, _ in w.versions for j in jobs] for w in (a, b)]
    assert order[0][:25] == order[1][:25]


def test_empty_windows_make_no_version(world: World) -> None:
    w = world(FedFix(1.0), 1, by_client(3.5)).run(seconds=12.5)
    assert [t for t, _, _ in w.versions] == [4.0, 8.0, 12.0]


def test_while_everybody_is_away_no_window_opens(world: World) -> None:
    w = world(FedFix(1.0), 2, by_client(0.5, 0.5), away={0: [(0.0, 1e6)], 1: [(0.0, 1e6)]})
    w.run(versions=1)
    assert w.versions[0][0] == 1e6 + 1 and w.events < 20


def test_with_nobody_ever_the_run_comes_to_rest_until_somebody_joins(world: World) -> None:
    nobody = frozenset({0})
    assert world(FedFix(1.0), 1, by_client(0.5), absent=nobody).run().events == 0
    w = world(FedFix(1.0), 1, by_client(0.5), absent=nobody, script=[(7.3, "join", 0)]).run(versions=1)
    assert w.versions[0][0] == 9.0


def test_a_failed_client_starts_again_with_the_next_window(world: World) -> None:
    fate = lambda job: "dropout" if job.id == 0 else None  # noqa: E731
    w = world(FedFix(2.0), 2, by_client(0.0, 1.0), fate).run(versions=2)
    assert [j.sent for j in w.jobs if j.client == 0][:2] == [0.0, 2.0]


def test_the_rest_is_combined_at_the_end_if_asked(world: World) -> None:
    assert len(world(FedFix(2.0), 1, by_client(1.0)).run(seconds=1.5).buffer) == 1
    assert world(FedFix(2.0, flush=True), 1, by_client(1.0)).run(seconds=1.5).version == 1


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(1, 12),
    st.sets(st.integers(0, 60), max_size=30),
    st.lists(st.tuples(st.integers(0, 80), st.sampled_from(["join", "leave"]), st.integers(0, 8)), max_size=6),
)
def test_no_job_is_lost_or_used_twice(world: Any, seconds: Any, window: int, lost: Any, script: Any) -> None:
    time = lambda job: seconds[job.client % len(seconds)] / 4  # noqa: E731
    fate = lambda job: "dropout" if job.id in lost else None  # noqa: E731
    moves = [(t / 4, what, c) for t, what, c in script if what == "join" or c < len(seconds)]
    w = world(FedFix(window / 4, flush=True), len(seconds), time, fate, script=moves).run(seconds=30.0)
    w.check_ledger()
    assert not w.buffer and not w.dropped


def test_a_window_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="window_seconds=0"):
        FedFix(0)
