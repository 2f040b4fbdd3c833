"""FedCompass: the published timeline, its variants, degenerate cases and invariants."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhet import types
from fedhet.numerics import plain_data
from strategies.schedules import fedcompass
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedcompass import FedCompass
from strategies.schedules.sync import Sync

World = Any
FIGURE = (0.1, 0.2, 0.25, 0.4, 0.5)
"""Minutes per step of the five clients of the paper's first figure; client 0 is the figure's client 1."""


def pace(*seconds_per_step: float) -> Callable[[types.Job], float]:
    return lambda job: job.budget.steps * seconds_per_step[job.client]


def timeline(w: World) -> list[tuple[float, int, int, int, float]]:
    """(time, client, group, steps, due) of every task given in a group."""
    return [
        (round(t, 6), int(d["client"]), int(d["group"]), int(d["steps"]), round(float(d["due"]), 6))
        for t, kind, d in w.notes
        if kind == "group"
    ]


def figure(world: World, latency_factor: float, join_slack: float) -> World:
    schedule = FedCompass(q_min=20, q_max=100, latency_factor=latency_factor, join_slack=join_slack)
    return world(schedule, 5, pace(*FIGURE)).run(seconds=27.0)


def test_the_papers_figure_is_reproduced(world: World) -> None:
    w = figure(world, 1.0, 1.0)
    assert timeline(w)[:13] == [
        (2, 0, 0, 100, 12),
        (4, 1, 0, 40, 12),
        (5, 2, 0, 28, 12),
        (8, 3, 1, 35, 22),
        (10, 4, 1, 24, 22),
        (12, 0, 1, 100, 22),
        (12, 1, 1, 50, 22),
        (12, 2, 1, 40, 22),
        (22, 0, 2, 100, 32),
        (22, 1, 2, 50, 32),
        (22, 2, 2, 40, 32),
        (22, 3, 2, 25, 32),
        (22, 4, 2, 20, 32),
    ]
    assert [(round(t, 6), [j.client for j in jobs], ages) for t, jobs, ages in w.versions] == [
        (2, [0], [0]),
        (4, [1], [1]),
        (5, [2], [2]),
        (8, [3], [3]),
        (10, [4], [4]),
        (12, [0, 1, 2], [4, 3, 2]),
        (22, [0, 1, 2, 3, 4], [0, 0, 0, 2, 1]),
    ]


def test_with_lambda_1_2_and_strict_joining_the_fastest_client_is_alone_for_a_while(world: World) -> None:
    w = figure(world, 1.2, 1.0)
    assert timeline(w)[3:9] == [
        (8, 3, 1, 40, 24),
        (10, 4, 1, 28, 24),
        (12, 0, 2, 100, 22),
        (12, 1, 1, 60, 24),
        (12, 2, 1, 48, 24),
        (22, 0, 1, 20, 24),
    ]
    assert [(round(t, 6), len(jobs)) for t, jobs, _ in w.versions[5:8]] == [(12, 3), (22, 1), (24, 5)]


def test_with_lambda_1_2_and_slack_it_joins_with_120_steps(world: World) -> None:
    w = figure(world, 1.2, 1.2)
    assert timeline(w)[3:8] == [
        (8, 3, 1, 40, 24),
        (10, 4, 1, 28, 24),
        (12, 0, 1, 120, 24),
        (12, 1, 1, 60, 24),
        (12, 2, 1, 48, 24),
    ]
    assert [(round(t, 6), len(jobs)) for t, jobs, _ in w.versions[5:7]] == [(12, 3), (24, 5)]


def test_with_lambda_1_5_and_strict_joining_all_meet_at_26_8(world: World) -> None:
    w = figure(world, 1.5, 1.0)
    assert timeline(w)[3:9] == [
        (8, 3, 1, 47, 26.8),
        (10, 4, 1, 33, 26.8),
        (12, 0, 2, 100, 22),
        (12, 1, 1, 74, 26.8),
        (12, 2, 1, 59, 26.8),
        (22, 0, 1, 48, 26.8),
    ]
    t, jobs, _ = w.versions[7]
    assert (round(t, 6), len(jobs)) == (26.8, 5)


def test_every_task_says_why_it_has_its_steps(world: World) -> None:
    w = figure(world, 1.0, 1.0)
    first = [(t, d["client"], d["steps"]) for t, kind, d in w.notes if kind == "first task"]
    assert first == [(0.0, client, 20) for client in range(5)]
    placed = [d for _, kind, d in w.notes if kind == "group"]
    assert [d["how"] for d in placed[:8]] == ["founded", "joined", "joined", "founded"] + ["joined"] * 4
    assert all(d["step_seconds"] == pytest.approx(FIGURE[d["client"]]) for d in placed)
    assert len(first) + len(placed) == len(w.jobs)


# Degenerate cases


@pytest.mark.parametrize("lag", [1.0, 1.2])
def test_equal_clients_with_an_initial_group_are_synchronous_rounds(world: World, lag: float) -> None:
    schedule = FedCompass(20, 100, 100, lag, initial_mode="group")
    a = world(schedule, 6, pace(*[0.3] * 6)).run(versions=8)
    b = world(Sync(), 6, pace(*[0.3] * 6), steps=100).run(versions=8)
    assert a.jobs == b.jobs and a.versions == b.versions


def test_equal_clients_form_one_group_once_each_has_returned(world: World) -> None:
    w = world(FedCompass(20, 100, latency_factor=1.0), 5, pace(*[0.1] * 5)).run(versions=9)
    assert [len(jobs) for _, jobs, _ in w.versions] == [1] * 5 + [5] * 4
    assert all(ages == [0] * 5 for _, _, ages in w.versions[5:])  # all left at the end of one instant
    assert {j.budget.steps for _, jobs, _ in w.versions[5:] for j in jobs} == {100}


def test_one_client_alone_is_sequential(world: World) -> None:
    w = world(FedCompass(), 1, pace(0.2)).run(versions=7)
    assert w.staleness() == [0] * 7 and len(w.jobs) == 7


def test_equal_bounds_on_the_steps_give_mostly_single_updates(world: World) -> None:
    schedule = FedCompass(50, 50, join_slack=1.0)
    w = world(schedule, 4, pace(0.1, 0.17, 0.23, 0.41)).run(versions=200)
    assert sum(len(jobs) == 1 for _, jobs, _ in w.versions) > 150
    assert {j.budget.steps for j in w.jobs} == {50}


def test_a_wide_range_of_steps_ends_in_one_group_of_all_clients(world: World) -> None:
    speeds = (0.01, 0.02, 0.05, 0.1, 0.3)
    w = world(FedCompass(1, 100_000), 5, pace(*speeds)).run(versions=40)
    assert all(len(jobs) == 5 and set(ages) == {0} for _, jobs, ages in w.versions[20:])


def test_the_newest_observation_weighs_beta_in_a_clients_speed(world: World) -> None:
    time = lambda job: job.budget.steps * (0.1, 0.2, 0.4)[min(job.turn, 2)]  # noqa: E731
    w = world(FedCompass(beta=0.75, latency_factor=2.0), 1, time).run(versions=2)
    assert w.schedule.groups.speeds[0] == pytest.approx(0.25 * 0.1 + 0.75 * 0.2)


# Late answers, silence, loss


def test_while_nobody_is_late_no_answer_waits_for_a_group_of_others(world: World) -> None:
    speeds = (0.1, 0.13, 0.29, 0.31, 0.47, 0.53)
    w = world(FedCompass(20, 100), 6, pace(*speeds), combine=lambda jobs, w: waiting.append(len(w.schedule.late)))
    waiting: list[int] = []
    w.run(versions=80)
    assert waiting == [0] * 80


def test_without_patience_noise_makes_about_half_of_the_answers_late(world: World) -> None:
    """Groups that wait not a moment longer than expected, and tasks that take a tenth more or less."""
    share = {}
    for factor in (1.0, 1.5):
        late = back = 0
        noise = np.random.default_rng(0).normal(1.0, 0.1, (8, 500))
        time = lambda job, n=noise: float(job.budget.steps * (0.1 + 0.06 * job.client) * n[job.client, job.turn])  # noqa: E731
        w = world(FedCompass(20, 100, latency_factor=factor), 8, time).run(versions=150)
        latest = {(round(t, 6), d["client"]): d["latest"] for t, kind, d in w.notes if kind == "group"}
        for job in w.jobs:
            if (round(job.sent, 6), job.client) in latest:
                back += 1
                late += job.sent + time(job) > latest[round(job.sent, 6), job.client] + 1e-9
        share[factor] = late / back
    assert 0.3 < share[1.0] < 0.7 and share[1.5] < 0.05


def test_no_client_waits_for_a_late_answer_which_joins_the_next_group(world: World) -> None:
    slow = {6: 3.0}  # a job that takes three times as long as expected
    time = lambda job: job.budget.steps * FIGURE[job.client] * slow.get(job.id, 1.0)  # noqa: E731
    w = world(FedCompass(20, 100, latency_factor=1.0, join_slack=1.0), 5, time).run(versions=12)
    job = w.jobs[6]
    assert job.client == 1 and job.budget.steps == 40
    (at, jobs, ages), number = next((v, i) for i, v in enumerate(w.versions) if job in v[1])
    assert round(job.sent + 24.0, 6) == 28.0 and round(at, 6) > 28.0  # back at 28, twelve after its group was due
    assert len(jobs) > 1 and ages[jobs.index(job)] == number - job.version
    assert round(w.versions[5][0], 6) == 12 and w.clients_of(6) == [0, 2]
    w.check_ledger()


def test_a_client_that_is_always_late_still_moves_the_model(world: World) -> None:
    time = lambda job: job.budget.steps * 0.1 * 2.0**job.turn  # noqa: E731
    w = world(FedCompass(latency_factor=1.0), 1, time).run(versions=4)
    assert [len(jobs) for _, jobs, _ in w.versions] == [1, 2, 2, 2]
    w.check_ledger()


def test_a_group_without_answers_at_its_deadline_ends_through_late_answers(world: World) -> None:
    time = lambda job: job.budget.steps * 0.1 * (1.0 if job.turn != 1 else 2.5)  # noqa: E731
    w = world(FedCompass(latency_factor=1.2), 2, time).run(versions=4)
    assert max(Counter(j.id for _, jobs, _ in w.versions for j in jobs).values()) == 1
    assert w.clients_of(3) and not w.schedule.late
    w.check_ledger()


def test_silent_members_are_given_up_and_their_group_forgotten(world: World) -> None:
    time = lambda job: 1e7 if (job.client, job.turn) == (1, 1) else job.budget.steps * 0.1  # noqa: E731
    w = world(FedCompass(patience=3.0), 3, time).run(seconds=200.0)
    given_up = [(t, d) for t, kind, d in w.notes if kind == "gave up"]
    job = next(j for j in w.jobs if (j.client, j.turn) == (1, 1))
    assert len(given_up) == 1 and given_up[0][1]["clients"] == 1
    assert given_up[0][0] == pytest.approx(job.sent + 3.0 * 1.2 * job.budget.steps * 0.1)
    assert 1 not in w.schedule.groups.member and len(w.schedule.groups.all) <= 2


def test_a_silent_member_that_comes_back_after_all_is_used_once(world: World) -> None:
    time = lambda job: 500.0 if (job.client, job.turn) == (1, 1) else job.budget.steps * 0.1  # noqa: E731
    w = world(FedCompass(), 3, time).run(seconds=700.0)
    job = next(j for j in w.jobs if (j.client, j.turn) == (1, 1))
    assert w.applied[job.id] == 1 and w.turns[1] > 3
    w.check_ledger()


def test_a_failed_member_does_not_hold_up_its_group(world: World) -> None:
    def fate(job: types.Job) -> str | None:
        return "dropout" if (job.client, job.turn) == (2, 1) else None

    time = lambda job: job.budget.steps * 0.1 + (3.0 if fate(job) else 0.0)  # noqa: E731
    schedule = FedCompass(20, 100, 100, 1.5, initial_mode="group")
    w = world(schedule, 3, time, fate).run(versions=4)
    assert round(w.versions[1][0], 6) == 23.0 and w.clients_of(2) == [0, 1]  # at 23 it is known to be lost
    assert w.turns[2] >= 3


def test_first_tasks_that_fail_at_once_are_retried_at_the_pace_of_the_pause(world: World) -> None:
    for mode in ("individual", "group"):
        schedule = FedCompass(initial_mode=mode, pause_seconds=4.0)
        w = world(schedule, 1, lambda job: 0.0, lambda job: "crash").run(seconds=13.0)
        assert [j.sent for j in w.jobs] == [0.0, 4.0, 8.0, 12.0]


def test_the_bound_on_task_time_comes_before_the_least_number_of_steps(world: World) -> None:
    w = world(FedCompass(20, 100, max_task_seconds=15.0), 3, pace(0.1, 0.2, 4.0)).run(seconds=300.0)
    later = [j for j in w.jobs if j.turn > 0]
    assert all(j.budget.steps * (0.1, 0.2, 4.0)[j.client] <= 15.0 + 1e-6 for j in later)
    assert {j.budget.steps for j in later if j.client == 2} <= {1, 2, 3}


def test_with_a_bound_on_task_time_an_initial_group_does_not_wait_for_ever(world: World) -> None:
    schedule = FedCompass(initial_mode="group", max_task_seconds=10.0)
    w = world(schedule, 3, pace(0.1, 0.2, 9e6)).run(seconds=60.0)
    assert w.versions[0][0] == 10.0 and w.clients_of(1) == [0, 1]


@pytest.mark.parametrize("mode", ["individual", "group"])
def test_clients_that_are_offline_leave_or_join_are_served_when_they_can_be(world: World, mode: str) -> None:
    schedule = FedCompass(initial_mode=mode)
    away = {1: [(0.0, 40.0)], 2: [(12.0, 60.0)]}
    script = [(30.0, "leave", 0), (80.0, "join", 0), (55.0, "join", 9)]
    w = world(schedule, 3, lambda job: job.budget.steps * 0.1, away=away, script=script).run(seconds=200.0)
    sent = {c: [j.sent for j in w.jobs if j.client == c] for c in (0, 1, 2, 9)}
    assert sent[1][0] == 40.0 and sent[9][0] == 55.0
    assert not [t for t in sent[2] if 12.0 <= t < 60.0] and max(sent[2]) > 60.0
    assert not [t for t in sent[0] if 30.0 <= t < 80.0] and 80.0 in sent[0]
    w.check_ledger()


def test_the_rest_is_combined_at_the_end_if_asked(world: World) -> None:
    w = world(FedCompass(20, 100, latency_factor=1.5, flush=True), 5, pace(*FIGURE)).run(seconds=26.6)
    assert not w.buffer and w.applied.total() == len(w.jobs) - len(w.inflight)


# Invariants


class Checked:
    """A schedule that looks at itself after every event."""

    def __init__(self, inner: FedCompass) -> None:
        self.inner = inner

    def react(self, event: Any, view: Any) -> Any:
        before = {g.id: (g.open, g.waiting | g.arrived.keys()) for g in self.inner.groups.all.values()}
        yield from self.inner.react(event, view)
        if event == types.Ending():
            return
        groups = self.inner.groups
        members = [c for g in groups.all.values() for c in (*g.waiting, *g.arrived)]
        assert len(members) == len(set(members)) and set(members) == groups.member.keys()
        held = {*self.inner.late.values(), *(j for g in groups.all.values() for j in g.arrived.values())}
        assert held == view.buffer.keys()
        for g in groups.all.values():
            assert g.waiting or g.arrived
            was_open, was = before.get(g.id, (True, set()))
            assert was_open or (g.waiting | g.arrived.keys()) <= was, "a closed group gained a member"
            if g.open and g.due is not None:
                assert g.latest is not None and g.due <= g.latest + 1e-9
                assert g.fastest == min(groups.speeds[c] for c in (*g.waiting, *g.arrived))
        timed = [g for g in groups.all.values() if g.open and g.due is not None]
        assert sorted(groups.dues) == groups.dues and {i for _, i in groups.dues} == {g.id for g in timed}
        assert sorted(groups.returns) == groups.returns and {i for _, i in groups.returns} == {g.id for g in timed}


worlds = st.fixed_dictionaries(
    {
        "speeds": st.lists(st.integers(1, 60), min_size=1, max_size=7),
        "jitter": st.lists(st.integers(50, 300), min_size=1, max_size=9),
        "lost": st.sets(st.integers(0, 80), max_size=25),
        "script": st.lists(
            st.tuples(st.integers(0, 300), st.sampled_from(["join", "leave"]), st.integers(0, 8)), max_size=8
        ),
        "gaps": st.dictionaries(st.integers(0, 6), st.tuples(st.integers(0, 80), st.integers(1, 60)), max_size=3),
        "schedule": st.fixed_dictionaries(
            {
                "q_min": st.integers(1, 10),
                "q_max": st.integers(10, 50),
                "q_init": st.one_of(st.none(), st.integers(1, 60)),
                "latency_factor": st.sampled_from([1.0, 1.2, 2.0]),
                "join_slack": st.sampled_from([1.0, 1.2]),
                "initial_mode": st.sampled_from(["individual", "group"]),
                "patience": st.sampled_from([1.0, 3.0]),
                "max_task_seconds": st.sampled_from([None, 30.0]),
            }
        ),
    }
)


def simulate(world: World, case: dict[str, Any], wrap: Callable[[FedCompass], Any] = lambda s: s) -> World:
    speeds, jitter, count = case["speeds"], case["jitter"], len(case["speeds"])

    def time(job: types.Job) -> float:
        factor = jitter[(7 * job.client + 3 * job.turn) % len(jitter)] / 100
        return float(job.budget.steps * speeds[job.client % count] / 100 * factor)

    return world(
        wrap(FedCompass(**case["schedule"], flush=True)),
        count,
        time,
        lambda job: "dropout" if job.id in case["lost"] else None,
        away={c: [(a, a + b)] for c, (a, b) in case["gaps"].items() if c < count},
        script=[(t / 2, what, c) for t, what, c in case["script"] if what == "join" or c < count],
    ).run(seconds=300.0, versions=120)


@given(worlds)
def test_invariants_hold_whatever_happens(world: Any, case: dict[str, Any]) -> None:
    w = simulate(world, case, Checked)
    w.check_ledger()
    assert not w.buffer and not w.dropped
    schedule = w.schedule.inner
    for _, kind, d in w.notes:
        if kind == "group":
            assert d["steps"] <= int(schedule.join_slack * schedule.q_max + 1e-9)
            assert d["steps"] >= schedule.q_min or schedule.max_task_seconds is not None


@settings(max_examples=settings.default.max_examples // 2)
@given(worlds, st.integers(5, 60))
def test_a_schedule_saved_and_restored_at_any_event_goes_on_as_before(
    world: Any, case: dict[str, Any], at: int
) -> None:
    class Interrupted:
        def __init__(self, inner: FedCompass) -> None:
            self.inner, self.events = inner, 0

        def react(self, event: Any, view: Any) -> Any:
            self.events += 1
            if self.events == at:
                fresh = FedCompass(**case["schedule"], flush=True)
                plain_data.fill(fresh, plain_data.dump(self.inner), [fedcompass, types])
                self.inner = fresh
            return self.inner.react(event, view)

    a, b = simulate(world, case), simulate(world, case, Interrupted)
    assert a.jobs == b.jobs and a.versions == b.versions and a.notes == b.notes


def test_on_time_members_return_within_one_step_of_the_due_time(world: World) -> None:
    speeds = (0.1, 0.13, 0.29, 0.31, 0.47, 0.53)
    w = world(FedCompass(20, 100), 6, pace(*speeds)).run(versions=60)
    due = {(round(t, 6), d["client"]): d["due"] for t, kind, d in w.notes if kind == "group"}
    checked = 0
    for job in w.jobs:
        if (round(job.sent, 6), job.client) in due and w.applied[job.id]:
            back = job.sent + job.budget.steps * speeds[job.client]
            gap = due[round(job.sent, 6), job.client] - back
            assert -1e-6 <= gap <= speeds[job.client] + 1e-6
            checked += 1
    assert checked > 100


def test_members_of_one_combination_go_on_from_one_version(world: World) -> None:
    w = world(FedCompass(), 5, pace(*FIGURE)).run(versions=30)
    for number, (t, jobs, _) in enumerate(w.versions, start=1):
        resumed = [j for j in w.jobs if abs(j.sent - t) < 1e-9 and j.client in {k.client for k in jobs}]
        assert all(j.version >= number for j in resumed) and len({j.version for j in resumed}) <= 1


def test_slack_in_joining_makes_groups_larger_and_updates_fresher(world: World) -> None:
    size: dict[float, float] = {}
    age: dict[float, float] = {}
    for slack in (1.0, 1.2):
        sizes, ages = [], []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            speeds = np.maximum(rng.exponential(1.0, 10), 0.05)
            jitter = rng.normal(1.0, 0.05, (10, 400)).clip(0.8, 1.2)
            time = lambda job, s=speeds, j=jitter: float(  # noqa: E731
                job.budget.steps * s[job.client] * j[job.client, job.turn % 400]
            )
            w = world(FedCompass(40, 200, join_slack=slack), 10, time).run(versions=120)
            sizes += [len(jobs) for _, jobs, _ in w.versions[20:]]
            ages += [u for _, _, us in w.versions[20:] for u in us]
        size[slack], age[slack] = sum(sizes) / len(sizes), sum(ages) / len(ages)
    assert size[1.2] > size[1.0] and age[1.2] < age[1.0]


def test_a_clock_that_jumps_backward_corrupts_nothing(world: World) -> None:
    class Jumping:
        """The view with a clock that now and then falls back."""

        def __init__(self, view: Any, back: float) -> None:
            self.view, self.back = view, back

        def __getattr__(self, name: str) -> Any:
            return getattr(self.view, name)

        @property
        def now(self) -> float:
            return max(0.0, float(self.view.now) - self.back)

    class Shaken(Checked):
        events = 0

        def react(self, event: Any, view: Any) -> Any:
            self.events += 1
            return super().react(event, Jumping(view, 5.0 if self.events % 3 == 0 else 0.0))

    w = world(Shaken(FedCompass()), 5, pace(*FIGURE)).run(seconds=400.0)
    w.check_ledger()
    assert w.version > 20


# Cost


def lines_run(work: Callable[[], object]) -> int:
    """Lines of the schedule executed by `work`: a measure of cost that does not depend on the machine."""
    count, files = 0, ("schedules/fedcompass.py", "schedules/groups.py", "schedules/waiting.py")

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        return local if frame.f_code.co_filename.endswith(files) else None

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(old)
    return count


@pytest.mark.parametrize("strict", [False, True])
def test_cost_per_answer_does_not_grow_with_the_fleet(world: World, strict: bool) -> None:
    """Strict bounds leave every client in a group of its own: as many groups as clients."""

    def run(clients: int) -> float:
        schedule = FedCompass(50, 50, join_slack=1.0) if strict else FedCompass()
        w = world(schedule, clients, lambda job: job.budget.steps * (0.1 + 0.9 * (job.client * 7919 % 9973) / 9973))
        lines = lines_run(lambda: w.run(versions=2 * clients if strict else clients + 40))
        return lines / len(w.jobs)

    assert run(800) < 1.5 * run(100)


def test_ten_thousand_clients_are_no_trouble(world: World) -> None:
    w = world(FedCompass(), 10_000, lambda job: job.budget.steps * (0.1 + 0.9 * (job.client * 7919 % 9973) / 9973))
    w.run(seconds=60.0)
    assert w.version > 10_000 and len(w.schedule.groups.all) < 50
    assert sum(len(jobs) for _, jobs, _ in w.versions[10_000:]) > 5_000


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("q_min=0", {"q_min": 0}),
        ("q_max=10 is below q_min=20", {"q_min": 20, "q_max": 10}),
        ("q_init=0", {"q_init": 0}),
        ("latency_factor=0.9", {"latency_factor": 0.9}),
        ("join_slack=0.5", {"join_slack": 0.5}),
        ("initial_mode='all'", {"initial_mode": "all"}),
        ("beta=0", {"beta": 0}),
        ("max_task_seconds=-1", {"max_task_seconds": -1}),
        ("patience=0", {"patience": 0}),
        ("pause_seconds=0", {"pause_seconds": 0}),
    ],
)
def test_values_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        FedCompass(**arguments)


def test_asynchronous_training_with_displacements_is_the_same_as_single_member_groups(world: World) -> None:
    a = world(FedCompass(50, 50, 50, join_slack=1.0), 1, pace(0.2)).run(versions=5)
    b = world(FedBuff(size=1), 1, pace(0.2), steps=50).run(versions=5)
    assert a.jobs == b.jobs and a.versions == b.versions
