"""Importance weights against bias by speed: the table, and quadratics whose optimum they recover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhet.types import Budget, Job, Memory, Update
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedfix import FedFix
from strategies.schedules.sync import Sync
from strategies.staleness.importance import Importance, contributions, windows, windows_exponential

World = Any
TAUS = [1 - 0.8 * i / 9 for i in range(10)]
ZERO = {"w": torch.zeros(1)}


def test_the_asynchronous_weights_are_those_of_the_table() -> None:
    d = [0.1 / r for r in contributions("asynchronous", TAUS)]
    want = [2.1281, 1.9389, 1.7497, 1.5606, 1.3714, 1.1823, 0.9931, 0.8039, 0.6148, 0.4256]
    assert [round(x, 4) for x in d] == want
    assert round(sum(1 / t for t in TAUS), 4) == 21.2806


@pytest.mark.parametrize(
    ("window", "want"),
    [
        (0.2, [5, 5, 5, 4, 4, 3, 3, 2, 2, 1]),
        (0.5, [2, 2, 2, 2, 2, 2, 1, 1, 1, 1]),
        (0.8, [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]),
        (1.0, [1] * 10),
    ],
)
def test_the_fedfix_factors_are_the_windows_a_task_takes(window: float, want: list[int]) -> None:
    assert [1 / r for r in contributions("fedfix", TAUS, window_seconds=window)] == pytest.approx(want)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12), st.integers(1, 9))
def test_contributions_add_up_to_the_updates_of_a_version(seconds: list[float], size: int) -> None:
    assert sum(contributions("asynchronous", seconds)) == pytest.approx(1.0)
    assert sum(contributions("fedbuff", seconds, size=size)) == pytest.approx(size)
    assert contributions("synchronous", seconds) == [1.0] * len(seconds)


def test_weights_of_tiny_windows_are_proportional_to_the_asynchronous_ones() -> None:
    window = 1e-5
    windowed = contributions("fedfix", TAUS, window_seconds=window)
    ratios = [a / f for f, a in zip(windowed, contributions("asynchronous", TAUS), strict=True)]
    assert ratios == pytest.approx([1 / window / sum(1 / t for t in TAUS)] * len(TAUS), rel=1e-4)


def test_a_quotient_just_above_an_integer_is_that_integer() -> None:
    assert windows(1 - 0.8, 0.2) == 1 and windows(0.6, 0.2) == 3 and windows(0.6000001, 0.2) == 4
    assert windows(0.0, 0.2) == 1


def test_exponential_times_take_as_many_windows_as_a_simulation_says() -> None:
    sample = np.random.default_rng(0).exponential(0.7, 200_000)
    assert windows_exponential(0.7, 0.5) == pytest.approx(np.ceil(sample / 0.5).mean(), rel=0.01)


# Quadratics: client i has (theta - i)^2 / 2, so its displacement at theta is lr * (i - theta).


def quadratic(
    world: World, schedule: Any, seconds: float, weigh: Callable[[Job, Any], float], lr: float = 0.002
) -> tuple[float, float]:
    """Mean and standard deviation of theta over the second half of a run of a schedule, in float64."""
    theta, history = [4.4], []

    def combine(jobs: list[Job], w: Any) -> None:
        step = sum(weigh(j, w) * lr * (j.client - theta[j.version]) for j in jobs)
        theta.append(theta[-1] + step)
        if w.now > seconds / 2:
            history.append(theta[-1])

    world(schedule, 10, lambda job: TAUS[job.client], combine=combine).run(seconds=seconds)
    return float(np.mean(history)), float(np.std(history))


def weighted(layer: Importance) -> Callable[[Job, Any], float]:
    memory: Memory = {}
    return lambda job, w: 0.1 * layer.arrive(Update(job, ZERO, 1.0), w, memory).scale


def identical(share: float) -> Callable[[Job, Any], float]:
    return lambda job, w: share


def test_weighted_schemes_find_the_optimum_and_differ_in_steadiness(world: World) -> None:
    fedavg = quadratic(world, Sync(), 4000.0, identical(0.1))
    fedfix = quadratic(world, FedFix(0.5), 1500.0, weighted(Importance("fedfix", window_seconds=0.5)))
    asynchronous = quadratic(world, FedBuff(size=1), 300.0, weighted(Importance("asynchronous")))
    for mean, _ in (fedavg, fedfix, asynchronous):
        assert abs(mean - 4.5) < 0.02
    assert asynchronous[1] > fedfix[1] > fedavg[1]


@pytest.mark.parametrize("scheme", ["fedbuff", "online"])
def test_estimated_weights_serve_the_buffer_as_well(world: World, scheme: str) -> None:
    mean, _ = quadratic(world, FedBuff(size=3), 400.0, weighted(Importance(scheme, size=3)))
    assert abs(mean - 4.5) < 0.02


def test_identical_weights_find_the_surrogates_optimum_instead(world: World) -> None:
    by_rate = float(np.dot([1 / t for t in TAUS], range(10)) / sum(1 / t for t in TAUS))
    assert round(by_rate, 4) == 5.9635
    assert abs(quadratic(world, FedBuff(size=1), 400.0, identical(1.0))[0] - by_rate) < 0.03
    assert abs(quadratic(world, FedBuff(size=3), 400.0, identical(1 / 3))[0] - by_rate) < 0.03
    by_windows = [1 / windows(t, 0.5) for t in TAUS]
    want = float(np.dot(by_windows, range(10)) / sum(by_windows))
    assert round(want, 4) == 5.3571
    assert abs(quadratic(world, FedFix(0.5), 3000.0, identical(0.1))[0] - want) < 0.01


# The layer


def test_online_counts_contributions_over_versions(world: World) -> None:
    layer, memory = Importance("online"), Memory()
    seen: list[tuple[int, int, float]] = []

    def combine(jobs: list[Job], w: Any) -> None:
        seen.extend((w.version + 1, j.client, layer.arrive(Update(j, ZERO, 1.0), w, memory).scale) for j in jobs)

    world(FedBuff(size=1), 2, lambda job: (1.0, 2.5)[job.client], combine=combine).run(versions=7)
    count = [0, 0]
    for version, client, scale in seen:
        count[client] += 1
        assert scale == max(1.0, version / count[client])


def test_losses_participation_and_the_bound_enter_the_factor(fake_view: Callable[..., Any]) -> None:
    job = Job(0, 3, 0, 0, Budget(10), 0.0)
    seen = {3: _Seen(finished=3, failed=1, seconds_per_step=0.25)}
    view = fake_view(cohort=(job,), seen=seen)

    def scale(**more: Any) -> float:
        return Importance("fedfix", 1.0, **more).arrive(Update(job, ZERO, 1.0, 0.5), view, {}).scale

    assert scale() == 0.5 * 3  # ten steps of 0.25 s are three windows
    assert scale(losses=True) == pytest.approx(0.5 * 3 * 4 / 3)
    assert scale(participation=0.5) == 0.5 * 6
    assert scale(participation=0.5, max_factor=4.0) == 0.5 * 4


@pytest.mark.parametrize("scheme", ["fedfix", "online", "asynchronous", "fedbuff"])
@given(st.lists(st.lists(st.floats(0.05, 20.0), min_size=1, max_size=6), min_size=1, max_size=5), st.floats(0.0, 50.0))
def test_shrunk_estimates_are_those_with_as_many_usual_responses_more(
    fake_view: Callable[..., Any], scheme: str, given: list[list[float]], c: float
) -> None:
    """An independent reference: the pseudo-responses are really put into the lists."""
    layer, memory = Importance(scheme, window_seconds=0.7, size=3, shrinkage=c), Memory()
    order = [(client, seconds) for client, many in enumerate(given) for seconds in many]
    for version, (client, seconds) in enumerate(order):
        job = Job(version, client, version, 0, Budget(1), 0.0)
        view = fake_view(cohort=(job,), version=version, seen={client: _Seen(1, 0, seconds)})
        got = layer.arrive(Update(job, ZERO, 1.0), view, memory).scale
    client, k = len(given) - 1, len(given[-1])
    means = [sum(many) / len(many) for many in given]
    usual = sum(means) / len(means)
    shrunk = [(sum(many) + c * usual) / (len(many) + c) for many in given]
    pace = shrunk[-1] * sum(1 / m for m in shrunk)
    want = {
        "online": max(1.0, (len(order) + c) / (k + c)),
        "fedfix": (sum(windows(t, 0.7) for t in given[-1]) + c * windows(means[-1], 0.7)) / (k + c),
        "asynchronous": pace,
        "fedbuff": pace / 3,
    }
    assert got == pytest.approx(want[scheme], rel=1e-9)


def test_much_shrinkage_ends_at_the_constant_time_value_and_none_at_what_was_seen(
    fake_view: Callable[..., Any],
) -> None:
    """Times of 0.2 and 1.9 s: 1 and 2 windows of a second, but 2 for a constant 1.05 s."""

    def after_both(c: float) -> float:
        layer, memory = Importance("fedfix", window_seconds=1.0, shrinkage=c), Memory()
        for version, seconds in enumerate((0.2, 1.9)):
            job = Job(version, 0, version, 0, Budget(1), 0.0)
            view = fake_view(cohort=(job,), version=version, seen={0: _Seen(1, 0, seconds)})
            scale = layer.arrive(Update(job, ZERO, 1.0), view, memory).scale
        return scale

    assert after_both(0.0) == 1.5
    assert after_both(2.0) == 1.75
    assert after_both(1e9) == pytest.approx(2.0)


class _Seen:
    def __init__(self, finished: int, failed: int, seconds_per_step: float) -> None:
        self.finished, self.failed, self.seconds_per_step = finished, failed, seconds_per_step


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("scheme='tiers'", {"scheme": "tiers"}),
        ("window_seconds=None", {"scheme": "fedfix"}),
        ("size=None", {"scheme": "fedbuff"}),
        ("participation=0", {"scheme": "online", "participation": 0}),
        ("max_factor=0.5", {"scheme": "online", "max_factor": 0.5}),
        ("shrinkage=-1", {"scheme": "online", "shrinkage": -1.0}),
    ],
)
def test_values_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        Importance(**arguments)
