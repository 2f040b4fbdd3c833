"""Cached calibration against its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clients.work.sgd import Sgd
from fedhet.engine.method import Method, Misfit
from fedhet.numerics.tree import FlatTree, Schema, weighted_sum
from fedhet.protocols import Rule
from fedhet.types import Budget, Job, Memory, Tree, Update
from strategies.budgets.fixed import Fixed
from strategies.rules.chain import Chain
from strategies.rules.clipping import Clipping
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.krum import Krum
from strategies.rules.mean import Mean
from strategies.rules.median import Median
from strategies.schedules.fedbuff import FedBuff
from strategies.spaces.full import Full
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


def test_a_cut_of_the_norm_also_holds_for_what_is_cached(fake_view: Make) -> None:
    """Client 0 sends 1e6, cut to 1: as if it had sent 1."""
    view = fake_view(examples={0: 1, 1: 1})
    steps = []
    for value, scale in ((1e6, 1e-6), (1.0, 1.0)):
        layer, memory, seen = CA2FL(), Memory(), []
        for _ in range(3):
            answers = [
                Update(Job(0, 0, 0, 0, Budget(), 0.0), tree(np.array([value]), False), 1.0, scale),
                Update(Job(1, 1, 0, 0, Budget(), 0.0), tree(np.array([2.0]), False), 1.0),
            ]
            updates = [layer.arrive(u, view, memory) for u in answers]
            mean = weighted_sum([u.delta for u in updates], [u.scale / 2 for u in updates])
            seen.append(float(layer.finish(mean, view, memory)["w"]))
        steps.append(seen)
    assert steps[0] == pytest.approx(steps[1]) and steps[1] == [1.5] * 3


@pytest.mark.parametrize("rule", [Krum(f=1), Median(), GeometricMedian(), Chain([Clipping(1.0)], Mean())])
def test_behind_a_rule_that_protects_it_is_a_misfit(rule: Rule) -> None:
    with pytest.raises(Misfit, match=r"CA2FL needs \['mean'\].*goes past the rule"):
        Method(FedBuff(size=2), Full(), rule, Sgd(), Fixed(steps=1), staleness=(CA2FL(),))


@pytest.mark.parametrize("rule", [Mean(over="count"), Chain([], Mean())])
def test_behind_a_plain_mean_it_fits(rule: Rule) -> None:
    assert Method(FedBuff(size=2), Full(), rule, Sgd(), Fixed(steps=1), staleness=(CA2FL(),)).rule is rule


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_mean_of_the_caches_does_not_drift_in_half_precision(kind: torch.dtype, fake_view: Make) -> None:
    clients, rng = 400, np.random.default_rng(0)
    layer, memory = CA2FL(10_000), Memory()
    view = fake_view(examples=dict.fromkeys(range(clients), 1))
    for client in range(clients):
        leaf = torch.tensor(1 + 0.01 * rng.normal(size=3)).to(kind)
        combine(layer, [(client, FlatTree(Schema.of({"w": leaf}), leaf))], view, memory)
    caches = torch.stack([leaf.double() for key, leaf in memory.items() if key.startswith("cache/")])
    np.testing.assert_allclose(memory["total"].double() / clients, caches.mean(0), rtol=1e-5)
