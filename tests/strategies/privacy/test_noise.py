"""Noise of the requested size, one draw per job, in the delta alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.types import Budget, Job, Update
from strategies.privacy.noise import Noise

SCHEMA = Schema((("a", Leaf((40, 50))), ("b", Leaf((500,)))))


def update(scale: float = 0.01, client: int = 3, turn: int = 2) -> Update:
    flat = torch.from_numpy(np.random.default_rng(0).normal(size=SCHEMA.size)).float() * scale
    return Update(Job(5, client, 0, turn, Budget(), 0.0), FlatTree(SCHEMA, flat), 10.0, metrics={"loss": 1.0})


def added(layer: Noise, given: Update) -> np.ndarray:
    sent = layer.send(given, {})
    assert replace(sent, delta=given.delta) == given
    return (sent.delta.flat.double() - given.delta.flat.double()).numpy()  # type: ignore[attr-defined]


@pytest.mark.parametrize("rms", [0.5, 3.0])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_noise_is_normal_with_the_share_of_the_updates_size_asked_for(rms: float, scale: float) -> None:
    given = update(scale)
    size = float(given.delta.flat.double().square().mean().sqrt())  # type: ignore[attr-defined]
    drawn = added(Noise(rms, seed=1), given) / size
    assert drawn.std() == pytest.approx(rms, rel=0.05)
    assert abs(drawn.mean()) < 4 * rms / np.sqrt(SCHEMA.size)
    assert np.mean(np.abs(drawn) < rms) == pytest.approx(0.683, abs=0.03)


def test_every_job_has_a_draw_of_its_own_that_repeats() -> None:
    given, layer = update(), Noise(1.0, seed=1)
    assert np.array_equal(added(layer, given), added(layer, given))
    for other in (update(client=4), update(turn=3)):
        assert not np.allclose(added(layer, other), added(layer, given))
    assert not np.allclose(added(Noise(1.0, seed=2), given), added(layer, given))


def test_none_is_the_update_itself_and_separate_leaves_get_the_same_noise() -> None:
    given = update()
    assert Noise(0.0).send(given, {}) is given
    apart = replace(given, delta=dict(given.delta.items()))
    sent, flat = Noise(1.0).send(apart, {}), Noise(1.0).send(given, {})
    assert isinstance(sent.delta, dict)
    assert all(torch.equal(sent.delta[name], flat.delta[name]) for name in SCHEMA)


@pytest.mark.parametrize("rms", [-1.0, float("nan"), float("inf")])
def test_values_out_of_range_are_refused(rms: float) -> None:
    with pytest.raises(ValueError, match="rms="):
        Noise(rms)
