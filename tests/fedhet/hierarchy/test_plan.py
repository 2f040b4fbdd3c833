"""Plans of hierarchical aggregation: placement on declared hosts, growing groups, processes for a queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhet.hierarchy.plan import PLACEMENTS, Groups, Scale, fullest, left, place, planned

HOSTS = {"a": 4, "b": 2, "c": 3}


def test_best_fit_takes_the_fullest_host_with_room_and_the_others_do_not() -> None:
    load = {"a": 1, "b": 1, "c": 1}  # room 3, 1, 2
    assert [place(load, HOSTS, how) for how in PLACEMENTS] == ["b", "a", "a"]
    assert place({}, {"x": 2, "y": 2}) == "x"
    assert place({"b": 2, "c": 3}, HOSTS) == "a"


def test_what_fits_nowhere_waits_where_the_smallest_share_is_too_much() -> None:
    assert place({"a": 5, "b": 3, "c": 3}, HOSTS) == "c"
    assert place({"a": 5, "b": 3, "c": 4}, HOSTS) == "a"


def test_best_fit_leaves_hosts_empty_that_worst_fit_uses() -> None:
    hosts = {"x": 4, "y": 4, "z": 4}
    best, worst = Groups[int](hosts, 2), Groups[int](hosts, 2, "worst_fit")
    for n in range(5):
        best.add(n)
        worst.add(n)
    assert best.by_host == {"x": [[0, 1], [2, 3]], "y": [[4]], "z": []}
    assert worst.by_host == {"x": [[0, 3]], "y": [[1, 4]], "z": [[2]]}


@given(st.integers(0, 40), st.integers(2, 5), st.sampled_from(PLACEMENTS))
def test_every_update_is_in_one_group_and_earlier_groups_never_change(count: int, fan_in: int, how: str) -> None:
    groups = Groups[int](HOSTS, fan_in, how)
    for n in range(count):
        before = {host: [list(g) for g in held] for host, held in groups.by_host.items()}
        assert groups.add(n)[-1] == n
        for host, held in before.items():
            full = [g for g in held if len(g) == fan_in]
            assert groups.by_host[host][: len(full)] == full
    every = [one for held in groups.by_host.values() for group in held for one in group]
    assert sorted(every) == list(range(count))
    for held in groups.by_host.values():
        assert all(len(group) == fan_in for group in held[:-1]) and all(1 <= len(group) <= fan_in for group in held)
        assert [one for group in held for one in group] == sorted(one for group in held for one in group)


@given(st.integers(1, 400))
def test_the_planned_fan_in_leaves_the_fewest_passes_of_all_fan_ins_and_makes_the_fewest_of_its_equals(n: int) -> None:
    def cost(k: int) -> tuple[int, int]:
        leaves = [k] * (n // k) + ([n % k] if n % k else [])
        sums = [*leaves, len(leaves)] if len(leaves) > 1 else leaves
        last = [min(k, n), len(leaves)] if len(leaves) > 1 else leaves  # whichever leaf it is, it may be full
        return sum(size + 1 for size in last), sum(size + 1 for size in sums)

    best = min(range(2, max(2, n) + 1), key=lambda k: (*cost(k), k))
    assert planned(n) == best
    assert left(n, best) == cost(best)[0]


def test_a_planned_fan_in_grows_as_the_root() -> None:
    assert [planned(n) for n in (1, 4, 7, 8, 20, 60, 100, 400, 10_000)] == [2, 4, 7, 4, 5, 10, 10, 20, 100]


@given(st.integers(0, 30), st.sampled_from(PLACEMENTS))
def test_the_fullest_host_is_the_one_with_most_in_its_groups(count: int, how: str) -> None:
    groups = Groups[int](HOSTS, 3, how)
    for n in range(count):
        groups.add(n)
    assert fullest(count, HOSTS, how) == max(sum(map(len, held)) for held in groups.by_host.values())


def test_processes_follow_the_smoothed_queue_up_at_once_and_down_after_three_quiet_looks() -> None:
    scale = Scale(fan_in=2, most=6, smoothing=0.7, period=5.0)
    assert scale.look(0.0, 1) == 1  # q = 0.3
    assert scale.look(1.0, 20) == 1  # not looked yet
    assert scale.look(5.0, 20) == 4  # q = 6.21
    assert scale.look(10.0, 20) == 6  # q = 10.347, capped
    counts = [scale.look(15.0 + 5 * n, 1) for n in range(6)]
    assert counts[0] == 6 and counts[-1] < counts[0] and counts == sorted(counts, reverse=True)
    assert counts.index(counts[-1]) >= 2


def test_without_work_for_long_enough_there_is_no_process() -> None:
    scale = Scale(fan_in=2, most=4, idle=30.0)
    assert scale.look(0.0, 8) == 2  # q = 2.4
    assert scale.look(29.0, 0) > 0
    assert scale.look(30.0, 0) == 0 and scale.queue == 0.0
    assert scale.look(31.0, 1) == 1


@pytest.mark.parametrize("how", PLACEMENTS)
def test_placement_depends_on_arrivals_alone(how: str) -> None:
    one, two = Groups[int](HOSTS, 3, how), Groups[int](HOSTS, 3, how)
    for n in range(17):
        one.add(n)
        two.add(n)
    assert one.by_host == two.by_host
