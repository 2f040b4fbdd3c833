"""Delay compensation: exact where it can be, and the right sign."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhet.numerics.tree import FlatTree, Schema
from fedhet.types import Budget, Job, Memory, Update
from strategies.staleness.taylor import Taylor

Make = Callable[..., Any]


def flat(*values: float, dtype: torch.dtype = torch.float64) -> FlatTree:
    leaf = torch.tensor(values, dtype=dtype)
    return FlatTree(Schema.of({"w": leaf}), leaf)


def update(delta: FlatTree, steps: int = 1, version: int = 0) -> Update:
    return Update(Job(0, 0, version, 0, Budget(steps), 0.0), delta, 1.0)


def corrected(layer: Taylor, delta: FlatTree, old: FlatTree, now: FlatTree, fake_view: Make, steps: int = 1) -> Any:
    view = fake_view(version=3, state=now, bases={0: old, 3: now})
    return layer.arrive(update(delta, steps), view, {}).delta["w"]


@pytest.mark.parametrize("h", [0.5, 1.0, 7.0])
def test_on_a_quadratic_it_is_the_fresh_update_when_lambda_g_squared_is_the_curvature(
    h: float, fake_view: Make
) -> None:
    lr, old, now = 0.05, 2.0, 1.7
    gradient = h * old
    layer = Taylor(lam=h / gradient**2, lr=lr)
    got = corrected(layer, flat(-lr * gradient), flat(old), flat(now), fake_view)
    assert float(got) == pytest.approx(-lr * h * now, rel=1e-12)


def test_several_steps_are_corrected_through_their_mean_gradient(fake_view: Make) -> None:
    lam, lr, steps, delta, drift = 0.3, 0.1, 5, -0.8, 0.25
    g = -delta / (steps * lr)
    want = -steps * lr * (g + lam * g * g * drift)
    got = corrected(Taylor(lam, lr), flat(delta), flat(1.0), flat(1.0 + drift), fake_view, steps)
    assert float(got) == pytest.approx(want, rel=1e-12)


@given(st.floats(-2, 2), st.floats(-1, 1), st.floats(0.001, 1))
def test_the_correction_is_odd_in_the_drift(fake_view: Make, delta: float, drift: float, lam: float) -> None:
    ahead = corrected(Taylor(lam, 0.1), flat(delta), flat(0.0), flat(drift), fake_view)
    behind = corrected(Taylor(lam, 0.1), flat(delta), flat(0.0), flat(-drift), fake_view)
    assert float(ahead) - delta == pytest.approx(-(float(behind) - delta), abs=1e-12)


def test_where_the_model_has_gone_ahead_the_gradient_is_raised_and_the_displacement_lowered(fake_view: Make) -> None:
    assert float(corrected(Taylor(0.5, 0.1), flat(-1.0), flat(0.0), flat(0.2), fake_view)) < -1.0
    assert float(corrected(Taylor(0.5, 0.1), flat(1.0), flat(0.0), flat(0.2), fake_view)) < 1.0


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_fresh_update_and_lambda_zero_change_nothing(adaptive: bool, fake_view: Make) -> None:
    fresh = update(flat(0.3), version=3)
    view = fake_view(version=3, state=flat(1.0), bases={3: flat(1.0), 0: flat(5.0)})
    assert Taylor(0.5, 0.1, adaptive).arrive(fresh, view, {}) is fresh
    late = update(flat(0.3))
    assert Taylor(0.0, 0.1, adaptive).arrive(late, view, {}) is late
    still = fake_view(version=3, state=flat(5.0), bases={0: flat(5.0)})
    assert torch.equal(Taylor(0.5, 0.1, adaptive).arrive(late, still, {}).delta["w"], late.delta["w"])


def test_the_adaptive_form_divides_by_the_running_root_mean_square(fake_view: Make) -> None:
    layer, memory, ms = Taylor(2.0, 0.1, adaptive=True, decay=0.9), Memory(), None
    view = fake_view(version=3, state=flat(0.5), bases={0: flat(0.2)})
    for delta in (-0.3, 0.1, 0.7):
        g = -delta / 0.1
        ms = g * g if ms is None else 0.9 * ms + 0.1 * g * g
        want = -0.1 * (g + 2.0 / np.sqrt(ms + 1e-7) * g * g * 0.3)
        assert float(layer.arrive(update(flat(delta)), view, memory).delta["w"]) == pytest.approx(want, rel=1e-9)


def test_the_correction_is_clipped_to_a_multiple_of_the_displacement(fake_view: Make) -> None:
    layer = Taylor(100.0, 0.1, clip=0.5)
    got = corrected(layer, flat(1.0, -1.0, 0.001), flat(0.0, 0.0, 0.0), flat(9.0, 9.0, 1e-9), fake_view)
    assert got.tolist() == pytest.approx([0.5, -1.5, 0.001])


def test_plain_mappings_are_corrected_leaf_by_leaf(fake_view: Make) -> None:
    def tree(a: float, b: float) -> dict[str, torch.Tensor]:
        return {"a": torch.tensor([a]), "b": torch.tensor([[b]])}

    view = fake_view(version=1, state=tree(1.0, 2.0), bases={0: tree(0.5, 2.0)})
    got = Taylor(0.1, 1.0).arrive(Update(Job(0, 0, 0, 0, Budget(), 0.0), tree(2.0, 3.0), 1.0), view, {}).delta
    assert float(got["a"]) == pytest.approx(2.0 - 0.1 * 4.0 * 0.5) and float(got["b"]) == 3.0


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_correction_of_an_update_whose_norm_is_cut_is_that_of_the_cut_update(
    adaptive: bool, fake_view: Make
) -> None:
    """1e6 cut to 1 is worth what 1 is: its square must not bring the length back."""
    view = fake_view(version=3, state=flat(1.5), bases={0: flat(1.0)})
    layer = Taylor(lam=0.3, lr=0.1, adaptive=adaptive)
    long = layer.arrive(replace(update(flat(1e6)), scale=1e-6), view, {})
    short = layer.arrive(update(flat(1.0)), view, {})
    assert long.scale * float(long.delta["w"]) == pytest.approx(float(short.delta["w"]), rel=1e-12)


@pytest.mark.parametrize("field", ["lam=-1", "lr=0", "decay=1", "clip=0"])
def test_values_out_of_range_are_named(field: str) -> None:
    name, value = field.split("=")
    with pytest.raises(ValueError, match=field):
        Taylor(**{name: int(value)})  # type: ignore[arg-type]
