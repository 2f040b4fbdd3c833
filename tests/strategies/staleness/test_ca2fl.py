"""Cached calibration against its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedhet.tree import FlatTree, Schema, weighted_sum
from fedhet.types import Budget, Job, Memory, Tree, Update
from strategies.staleness.ca2fl import CA2FL

Make = Callable[..., Any]


def combine(layer: CA2FL, answers: list[tuple[int, Tree]], view: Any, memory: Memory) -> Tree:
    """A flush of the buffer with the mean by count, as the engine makes it."""
    updates = [
        layer.arrive(Update(Job(n, client, 0, 0, Budget(), 0.0), delta, 1.0), view, memory)
        for n, (client, delta) in enumerate(answers)
    ]
    mean = weighted_sum([u.delta for u in updates], [1.0 / len(updates)] * len(updates))
    return layer.finish(mean, view, memory)


def tree(values: np.ndarray, plain: bool) -> Tree:
    leaf = torch.tensor(values)
    return {"a": leaf[:1], "b": leaf[1:]} if plain else FlatTree(Schema.of({"w": leaf}), leaf)


def vector(t: Tree) -> np.ndarray:
    return np.concatenate([leaf.numpy().reshape(-1) for _, leaf in t.items()])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("recompute", [1, 3, 100])
def test_the_steps_are_those_of_the_algorithm(plain: bool, recompute: int, fake_view: Make) -> None:
    rng, clients = np.random.default_rng(1), 6
    layer, memory, cache = CA2FL(recompute), Memory(), np.zeros((6, 4))
    for version in range(12):
        chosen = rng.choice(clients, 3, replace=False)
        deltas = {int(c): rng.normal(size=4) for c in sorted(chosen)}
        want = cache.mean(0) + sum(d - cache[c] for c, d in deltas.items()) / 3
        for c, d in deltas.items():
            cache[c] = d
        view = fake_view(version=version, examples=dict.fromkeys(range(clients), 1))
        step = combine(layer, [(c, tree(d, plain)) for c, d in deltas.items()], view, memory)
        np.testing.assert_allclose(vector(step), want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(memory["total"].numpy() / clients, cache.mean(0), atol=1e-12)


def test_what_is_cut_is_cached_as_it_counts(fake_view: Make) -> None:
    """A norm cut stands in the scale; h must not give back what it took."""
    view, job, memory = fake_view(examples={0: 1, 1: 1}), Job(0, 0, 0, 0, Budget(), 0.0), Memory()
    cut = CA2FL().arrive(Update(job, tree(np.array([100.0, 100.0]), False), 1.0, scale=0.01), view, memory)
    assert cut.scale == 1.0 and vector(cut.delta) == pytest.approx([1.0, 1.0])
    CA2FL().finish(cut.delta, view, memory)
    assert memory["total"].tolist() == pytest.approx([1.0, 1.0])


def test_first_answers_are_a_plain_buffer_bit_for_bit(fake_view: Make) -> None:
    deltas = [tree(np.array([0.1, 0.7]), False), tree(np.array([0.3, -0.2]), False)]
    view = fake_view(examples={0: 1, 1: 1, 2: 1})
    step = combine(CA2FL(), list(enumerate(deltas)), view, {})
    assert torch.equal(step["w"], weighted_sum(deltas, [0.5, 0.5])["w"])


def test_answers_equal_to_their_caches_leave_the_mean_of_the_caches(fake_view: Make) -> None:
    view, memory = fake_view(examples={0: 1, 1: 1}), Memory()
    answers = [(0, tree(np.array([2.0]), False)), (1, tree(np.array([4.0]), False))]
    combine(CA2FL(), answers, view, memory)
    assert float(combine(CA2FL(), answers, view, memory)["w"]) == 3.0


def test_a_client_that_is_twice_in_the_buffer_counts_with_its_last_answer(fake_view: Make) -> None:
    view, memory = fake_view(examples={0: 1, 1: 1}), Memory()
    combine(CA2FL(), [(0, tree(np.array([1.0]), False))], view, memory)
    step = combine(CA2FL(), [(0, tree(np.array([50.0]), False)), (0, tree(np.array([5.0]), False))], view, memory)
    assert float(step["w"]) == pytest.approx(1.0 / 2 + (5.0 - 1.0) / 2)
    assert float(memory["total"]) == pytest.approx(5.0)


def test_a_period_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="recompute_every=0"):
        CA2FL(0)
