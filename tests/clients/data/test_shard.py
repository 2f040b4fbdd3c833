"""Mini-batches: every epoch has every sample once, and the order depends on seed, client and turn alone."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.data.shard import ClientShard

X, Y = torch.arange(50.0)[:, None].repeat(1, 3), torch.arange(50) % 7


def shard(index=(4, 8, 15, 16, 23, 42), seed=0, client=1, turn=2):
    return ClientShard(X, Y, np.array(index, dtype=np.int32), seed, client, turn)


def seen(part: ClientShard, size: int, count: int) -> list[int]:
    return [int(v) for x, _ in islice(part.batches(size), count) for v in x[:, 0]]


@given(st.lists(st.integers(0, 49), min_size=1, max_size=20, unique=True), st.integers(1, 25), st.integers(1, 3))
def test_each_epoch_has_each_sample_once_and_keeps_its_last_batch(index, size, epochs):
    part = shard(index)
    per_epoch = -(-len(index) // size)
    for number, (x, y) in enumerate(islice(part.batches(size), per_epoch * epochs)):
        last = number % per_epoch == per_epoch - 1
        assert len(x) == len(y) == ((len(index) - 1) % size + 1 if last else size)
        assert torch.equal(y, Y[x[:, 0].long()])
    numbers = seen(part, size, per_epoch * epochs)
    for epoch in range(epochs):
        assert sorted(numbers[epoch * len(index) : (epoch + 1) * len(index)]) == sorted(index)


def test_the_order_depends_on_seed_client_and_turn_alone():
    first = seen(shard(), 2, 9)
    assert first == seen(shard(), 2, 9)
    others = [seen(shard(**{k: 5}), 2, 9) for k in ("seed", "client", "turn")]
    assert all(o != first for o in others) and len({tuple(o) for o in others}) == 3


def test_batch_size_cuts_the_same_order_differently():
    assert seen(shard(), 2, 6) == seen(shard(), 3, 4) == seen(shard(), 6, 2)


def test_epochs_are_shuffled_anew():
    numbers = seen(shard(), 6, 5)
    assert len({tuple(numbers[at : at + 6]) for at in range(0, 30, 6)}) > 1


def test_other_draws_of_the_job_do_not_move_its_batches():
    part = shard()
    part.rng("noise").random(1000)
    assert seen(part, 2, 9) == seen(shard(), 2, 9)
    assert part.rng("noise").random() == shard().rng("noise").random() != part.rng("other").random()


def test_two_iterators_do_not_share_a_position():
    part = shard()
    one, two = part.batches(2), part.batches(2)
    next(one)
    assert torch.equal(next(part.batches(2))[0], next(two)[0])


def test_the_whole_is_in_storage_order():
    x, y = shard().all_samples()
    assert x[:, 0].tolist() == [4, 8, 15, 16, 23, 42] and torch.equal(y, Y[x[:, 0].long()])
    assert len(shard()) == 6


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 9))
def test_picked_are_the_samples_of_the_first_batches(length, size, count):
    part = shard(range(length))
    picked = part.pick(size, count)
    assert picked.x is X and picked.y is Y and len(picked.order) == sum(picked.sizes)
    batches = list(islice(part.batches(size), count))
    assert picked.sizes == [len(y) for _, y in batches]
    for order, (x, y) in zip(picked.order.split(picked.sizes), batches, strict=True):
        assert torch.equal(X[order], x) and torch.equal(Y[order], y)


@pytest.mark.parametrize(("index", "size"), [((), 4), ((1, 2), 0)])
def test_nothing_to_draw_is_an_error_at_once(index, size):
    with pytest.raises(ValueError, match="both must be at least 1"):
        shard(index).batches(size)
    with pytest.raises(ValueError, match="both must be at least 1"):
        shard(index).pick(size, 1)
