"""A stream is numpy's Philox with the hash of its name as key; different names give different streams."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from fedhet.numerics.rng import number, stream, torch_stream


@pytest.mark.parametrize("name", [(0, "batches", 3, 4), (7, "x"), (-1, "a/b", 10**20)])
def test_a_stream_is_philox_keyed_by_the_hash_of_its_name(name: tuple[int, str, int]) -> None:
    seed, purpose, *keys = name
    text = f"{seed}/{purpose}/" + "/".join(map(str, keys))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    reference = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))
    ours = stream(*name)
    assert ours.random(1000).tolist() == reference.random(1000).tolist()
    assert ours.permutation(50).tolist() == reference.permutation(50).tolist()
    assert ours.standard_normal(7).tolist() == reference.standard_normal(7).tolist()


def test_every_part_of_a_name_counts() -> None:
    names = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a", 1, 0), (0, "a")]
    assert len({stream(*n).integers(1 << 60) for n in names}) == len(names)
    assert len({number(*n) for n in names}) == len(names)


def test_equal_names_give_equal_draws_whatever_was_drawn_between() -> None:
    first = stream(5, "p", 2).random(10)
    stream(5, "other").random(3)
    assert np.array_equal(stream(5, "p", 2).random(10), first)
    assert torch.equal(
        torch.rand(4, generator=torch_stream(5, "p", 2)), torch.rand(4, generator=torch_stream(5, "p", 2))
    )
    assert 0 <= number(5, "p", 2) < 1 << 63


def test_a_stream_can_be_copied_and_pickled_like_any_generator() -> None:
    import pickle

    ours = stream(1, "p")
    again = pickle.loads(pickle.dumps(ours))
    assert again.random(5).tolist() == ours.random(5).tolist()
