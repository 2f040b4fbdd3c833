"""FedAT's weighted sum of tier models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhet.numerics.tree import FlatTree, Schema
from fedhet.types import Job, Memory
from strategies.schedules.fedat import FedAT
from strategies.staleness.tiers import Tiers, tier_weights

World = Any


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_the_weights_add_up_to_one(counts: list[int]) -> None:
    assert sum(tier_weights(counts)) == pytest.approx(1.0)


def test_slow_tiers_get_the_fast_tiers_counts() -> None:
    assert tier_weights([6, 3, 1]) == [0.1, 0.3, 0.6]
    assert tier_weights([4, 4]) == [0.5, 0.5]
    assert tier_weights([9, 3, 0]) == [1 / 3] * 3


@pytest.mark.parametrize("plain", [False, True])
def test_the_model_is_the_mixture_throughout_a_run_of_the_schedule(world: World, plain: bool) -> None:
    """Client i pulls towards i; the reference keeps the tier models by itself, in float64."""
    tiers, times = 3, (1.0, 9.0, 1.2, 4.0, 10.0, 5.0)
    members = [{0, 2}, {3, 5}, {1, 4}]
    layer, memory = Tiers(tiers), Memory()
    theta, models, counts = [np.zeros(2)], [np.zeros(2)] * tiers, [0] * tiers

    def tree(values: np.ndarray) -> Any:
        leaf = torch.tensor(values)
        return {"a": leaf[:1], "b": leaf[1:]} if plain else FlatTree(Schema.of({"w": leaf}), leaf)

    def combine(jobs: list[Job], w: Any) -> None:
        base = theta[jobs[0].version]
        delta = np.mean([0.3 * (np.array([j.client, -j.client]) - base) for j in jobs], axis=0)
        w.state, w.base = tree(theta[-1]), lambda version: tree(theta[version])
        step = layer.finish(tree(delta), w, memory)
        got = theta[-1] + np.concatenate([leaf.numpy() for _, leaf in step.items()])
        if w.version == 0:
            want = theta[-1] + delta
            models[:] = [want] * tiers
        else:
            m = next(i for i, part in enumerate(members) if jobs[0].client in part)
            models[m], counts[m] = base + delta, counts[m] + 1
            weights = [c / sum(counts) for c in counts[::-1]] if all(counts) else [1 / tiers] * tiers
            want = sum(a * model for a, model in zip(weights, models, strict=True))
        np.testing.assert_allclose(got, want, atol=1e-12)
        theta.append(want)

    world(FedAT(tiers), 6, lambda job: times[job.client], combine=combine).run(seconds=80.0)
    assert counts[0] > counts[1] > counts[2] > 3


def test_no_tiers_are_refused() -> None:
    with pytest.raises(ValueError, match="tiers=0"):
        Tiers(0)
