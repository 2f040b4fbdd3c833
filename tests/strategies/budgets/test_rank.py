"""The largest rank that fits a client: values computed by hand, limits that are reached, monotone in each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhet.numerics.tree import Leaf, Schema
from fedhet.population.profile import Profile
from fedhet.types import Budget
from strategies.budgets.by_memory import ByMemory
from strategies.budgets.by_time import ByTime
from strategies.budgets.rank import AbstractRank, ladder

Make = Callable[..., Any]
SHAPES = ((96, 32), (32, 96))
SIDES = sum(d + k for d, k in SHAPES)
STATE = {"a": torch.zeros(96, 32), "b": torch.zeros(32, 96)}
BASE = 4 * 2 * 96 * 32


class Pairs:
    """Two factors for each matrix of the state, of the job's rank."""

    def expects(self, state: Any, job: Any) -> Schema:
        rank = job.budget.rank
        return Schema(
            tuple(
                leaf
                for name, (d, k) in zip(state, SHAPES, strict=True)
                for leaf in ((f"{name}.A", Leaf((rank, k))), (f"{name}.B", Leaf((d, rank))))
            )
        )


class Whole:
    """The same at any rank."""

    def expects(self, state: Any, job: Any) -> Schema:
        return Schema.of(state)


@dataclass
class Give:
    """The budget of one client with a given profile."""

    make: Make
    space: Any

    def __call__(self, policy: AbstractRank, **declared: Any) -> Budget:
        return policy(0, self.view(declared))

    def rank(self, policy: AbstractRank, **declared: Any) -> int:
        return policy.rank(0, self.view(declared))

    def view(self, declared: dict[str, Any]) -> Any:
        speeds = {"sec_per_step", "sec_per_sample", "flops_per_s"}
        profile = Profile(name="phone", **({} if speeds & declared.keys() else {"sec_per_step": 0.1}), **declared)
        return self.make(profiles={0: profile}, space=self.space, state=STATE)


@pytest.fixture
def give(fake_view: Make) -> Give:
    return Give(fake_view, Pairs())


@given(st.integers(1, 5000))
def test_candidates_are_powers_of_two_and_the_limit(limit: int) -> None:
    found = ladder(limit)
    assert found[-1] == limit and found == sorted(set(found))
    assert all(r & (r - 1) == 0 for r in found[:-1]) and (limit == 1 or found[0] == 1)
    assert len(found) == math.ceil(math.log2(limit)) + 1


def by_hand(rank: int, batch: int = 8, positions: int = 5) -> float:
    return BASE + rank * (16 * SIDES + 4 * 4 * batch * positions)


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16, 32])
def test_memory_figures_by_hand(give: Give, rank: int) -> None:
    policy = ByMemory(steps=3, batch=8, positions=5, max_rank=64)
    assert give(policy, memory_bytes=by_hand(rank)) == Budget(3, rank)
    assert give.rank(policy, memory_bytes=by_hand(rank) - 1) == rank // 2
    assert give(policy, memory_bytes=by_hand(2 * rank) - 1).rank == rank


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_every_row_of_a_pool_counts_and_once_more_where_it_is_set_aside(give: Give, pool: int) -> None:
    policy = ByMemory(steps=3, batch=8, positions=5, max_rank=64, pool=pool)
    held = pool * 4
    needed = by_hand(held) + (4 * SIDES * held if pool > 1 else 0)
    assert give.rank(policy, memory_bytes=needed) == 4
    assert give.rank(policy, memory_bytes=needed - 1) == 2


def test_steps_of_a_pool_compute_with_all_its_rows(give: Give) -> None:
    one = 8 * (2 * 1e6 + 6 * 2 * SIDES * 4)
    policy = ByTime(steps=10, batch=8, max_rank=4, pool=2, base_flops=1e6, compute_seconds=10.0)
    assert give(policy, flops_per_s=one) == Budget(10, 4)
    assert give(policy, flops_per_s=one - 1).rank == 2


def test_a_measured_base_replaces_the_models_bytes(give: Give) -> None:
    policy = ByMemory(steps=1, base_bytes=1000.0, activation_bytes=0.0)
    assert give(policy, memory_bytes=1000 + 16 * SIDES * 4).rank == 4
    assert give(policy, memory_bytes=1000 + 16 * SIDES * 4 - 1).rank == 2


def test_who_cannot_afford_rank_one_is_named(give: Give) -> None:
    for policy, declared in (
        (ByMemory(steps=1), {"memory_bytes": 1.0}),
        (ByTime(steps=2, transfer_seconds=0.0), {"uplink_bytes_per_s": 1.0}),
        (ByTime(steps=2, compute_seconds=0.0), {}),
    ):
        assert give.rank(policy, **declared) == 0
        with pytest.raises(ValueError, match="client phone cannot afford rank 1"):
            give(policy, **declared)


def test_who_declares_nothing_gets_the_most_and_a_declared_rank_bounds_it(give: Give) -> None:
    for policy in (ByMemory(steps=1, max_rank=48), ByTime(steps=1, max_rank=48)):
        assert give(policy).rank == 48
        assert give(policy, max_rank=5).rank == 5
        assert give(policy, max_rank=500).rank == 48


def test_transfer_figures_by_hand(give: Give) -> None:
    # rank 4: 4 * 256 numbers of 4 bytes, 2.048 s up and 0.512 s down, and twice 0.1 s of latency
    declared = {"uplink_bytes_per_s": 2000.0, "downlink_bytes_per_s": 8000.0, "latency_s": 0.1}
    seconds = 4 * SIDES * 4 / 2000 + 4 * SIDES * 4 / 8000 + 0.2
    assert abs(seconds - 2.76) < 1e-12
    assert give(ByTime(steps=1, transfer_seconds=2.76 + 1e-9), **declared).rank == 4
    assert give(ByTime(steps=1, transfer_seconds=2.75), **declared).rank == 2
    # a stack of rank 10 comes down whoever gets it: 1.28 s
    stack = 10 * SIDES * 4 / 8000 + 4 * SIDES * 4 / 2000 + 0.2
    assert give(ByTime(steps=1, transfer_seconds=stack + 1e-9, down_rank=10), **declared).rank == 4
    assert give(ByTime(steps=1, transfer_seconds=stack - 1e-3, down_rank=10), **declared).rank == 2


def test_compute_figures_by_hand(give: Give) -> None:
    # 10 steps of 4 samples of 5 positions at rank 8: 40 * (2e4 + 6 * 5 * 2048) FLOPs
    needed = 10 * 4 * (2 * 1e4 + 6 * 5 * 8 * SIDES)
    policy = ByTime(steps=10, batch=4, positions=5, base_flops=1e4, compute_seconds=2.0)
    assert give(policy, flops_per_s=needed / 2) == Budget(10, 8)
    assert give(policy, flops_per_s=needed / 2 * 0.999) == Budget(10, 4)


def test_steps_are_cut_only_as_far_as_allowed(give: Give) -> None:
    policy = ByTime(steps=100, min_steps=5, compute_seconds=3.0)
    assert give(policy, sec_per_step=0.3) == Budget(10, 8)
    assert give(policy, sec_per_step=0.6) == Budget(5, 8)
    assert give.rank(policy, sec_per_step=0.61) == 0
    assert give(ByTime(steps=2, min_steps=5, compute_seconds=3.0), sec_per_step=1.5) == Budget(2, 8)


def test_declared_seconds_a_sample_count_the_batch(give: Give) -> None:
    policy = ByTime(steps=10, batch=4, compute_seconds=4.0)
    assert give(policy, sec_per_sample=0.1).rank == 8 and give.rank(policy, sec_per_sample=0.101) == 0


LIMITS = {
    "memory_bytes": st.floats(1e3, 1e7),
    "uplink_bytes_per_s": st.floats(1e2, 1e7),
    "downlink_bytes_per_s": st.floats(1e2, 1e7),
    "flops_per_s": st.floats(1e4, 1e9),
}
POLICY = ByTime(steps=4, batch=8, positions=5, base_flops=1e4, transfer_seconds=3.0, compute_seconds=5.0, max_rank=48)


@given(st.fixed_dictionaries(LIMITS), st.sampled_from(sorted(LIMITS)), st.floats(1.0, 50.0))
def test_more_of_anything_never_lowers_the_rank(
    fake_view: Make, declared: dict[str, float], more: str, factor: float
) -> None:
    give = Give(fake_view, Pairs())
    assert give.rank(POLICY, **declared) <= give.rank(POLICY, **{**declared, more: declared[more] * factor})


def costs(rank: int, declared: dict[str, float]) -> list[float]:
    """Each limit's use as a share of it, written out once more."""
    sent = 4 * rank * SIDES
    return [
        by_hand(rank) / declared["memory_bytes"],
        (sent / declared["uplink_bytes_per_s"] + sent / declared["downlink_bytes_per_s"]) / 3.0,
        4 * 8 * (2e4 + 6 * 5 * rank * SIDES) / declared["flops_per_s"] / 5.0,
    ]


@given(st.fixed_dictionaries(LIMITS))
def test_the_rank_meets_all_limits_and_the_next_breaks_one(fake_view: Make, declared: dict[str, float]) -> None:
    rank = Give(fake_view, Pairs()).rank(POLICY, **declared)
    ranks = [0, *ladder(48)]
    assert rank in ranks
    assert rank == 0 or max(costs(rank, declared)) <= 1 + 1e-9
    assert rank == 48 or max(costs(ranks[ranks.index(rank) + 1], declared)) > 1 - 1e-9


def test_a_space_without_ranks_is_named(fake_view: Make) -> None:
    with pytest.raises(ValueError, match="Whole sends the same at any rank"):
        Give(fake_view, Whole())(ByMemory(steps=1))


def test_a_speed_in_flops_needs_the_models(give: Give) -> None:
    with pytest.raises(ValueError, match=r"client phone declares flops_per_s: set budget\.base_flops"):
        give(ByTime(steps=1, compute_seconds=1.0), flops_per_s=1e9)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("give one of them", {"epochs": 2}),
        ("steps=0", {"steps": 0}),
        ("batch=0", {"batch": 0}),
        ("width=2", {"width": 2.0}),
        ("positions=0", {"positions": 0}),
        ("max_rank=0", {"max_rank": 0}),
        ("base_bytes=-1", {"base_bytes": -1.0}),
        ("bytes_per_parameter=nan", {"bytes_per_parameter": math.nan}),
        ("activation_bytes=inf", {"activation_bytes": math.inf}),
    ],
)
def test_values_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    for kind in (ByMemory, ByTime):
        with pytest.raises(ValueError, match=field):
            kind(**{"steps": 1, **arguments})


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("transfer_seconds=-1", {"transfer_seconds": -1.0}),
        ("compute_seconds=nan", {"compute_seconds": math.nan}),
        ("min_steps=0", {"min_steps": 0}),
        ("down_rank=-1", {"down_rank": -1}),
        ("base_flops=0", {"base_flops": 0.0}),
    ],
)
def test_times_out_of_range_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=field):
        ByTime(steps=1, **arguments)
