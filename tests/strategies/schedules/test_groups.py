"""Joining and creating arrival groups, against a linear search over all of them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from strategies.schedules.groups import Groups, whole_steps


def founded(groups: Groups, client: int, s: float, now: float, factor: float = 1.2) -> int:
    """A group founded by a client of this speed; returns its number."""
    groups.speeds[client] = s
    _, group = groups.found(s, now, 2, groups.q_max, factor)
    groups.enter(client, group)
    return group.id


def test_of_groups_that_give_the_same_steps_the_newest_is_joined() -> None:
    for speeds in ((1.0, 1.01), (1.01, 1.0)):
        groups = Groups(10)
        numbers = [founded(groups, c, s, 0.0) for c, s in enumerate(speeds)]
        place = groups.join(4.0, 0.0, 1, 10)
        assert place is not None and place[0] == 2 and place[1].id == numbers[-1]


def test_a_group_past_its_latest_second_is_no_guide_for_a_new_one() -> None:
    groups = Groups(10)
    first = founded(groups, 0, 1.0, 0.0, factor=1.0)
    latest = groups.all[first].latest
    assert latest == 10.0
    assert groups.found(2.0, 9.0, 2, 10, 1.0)[0] == 5  # with that group's return at 20: (20 - 9) / 2
    assert groups.found(2.0, 10.0, 2, 10, 1.0)[0] == 10


def test_quotients_just_below_an_integer_count_as_it() -> None:
    assert 0.3 / 0.1 < 3 and whole_steps(0.3, 0.1) == 3
    assert whole_steps(0.2999, 0.1) == 2 and whole_steps(-0.1, 0.2) == -1


speeds = st.lists(st.integers(1, 300), min_size=1, max_size=12)


@given(speeds, st.integers(1, 300), st.integers(0, 400), st.integers(1, 8), st.integers(0, 30))
def test_the_sorted_search_finds_what_looking_at_every_group_finds(
    paces: list[int], pace: int, now: int, low: int, more: int
) -> None:
    groups, s, t, high = Groups(20), pace / 50, now / 10, low + more
    for client, p in enumerate(paces):
        founded(groups, client, p / 50, client / 3)
    feasible = []
    for g in groups.all.values():
        assert g.due is not None
        q = whole_steps(g.due - t, s)
        if g.due > t + 1e-9 and low <= q <= high:
            feasible.append((q, g.id))
    place = groups.join(s, t, low, high)
    assert (None if place is None else (place[0], place[1].id)) == max(feasible, default=None)

    returns = []
    for g in groups.all.values():
        assert g.latest is not None
        q = math.floor((g.latest + g.fastest * 20 - t) / s + 1e-9)
        if g.latest > t + 1e-9 and q <= high:
            returns.append(q)
    want = max(low, max(returns)) if returns else high
    assert groups.found(s, t, low, high, 1.2)[0] == want
