"""Compiled steps of small perceptrons: float64's result to rounding, with the same bits for every way to call them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients.models.vision import mlp
from fedhet.config import composition
from fedhet.model.flat_model import Model
from fedhet.native import mlp_sgd, weighted_sum
from fedhet.native.mlp_batched import BatchedPerceptron
from fedhet.runs.experiment import Experiment
from fedhet.types import IndexedBatches

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
SHAPE = (1, 5, 5)


@pytest.fixture
def fresh() -> Iterator[None]:
    """The function is looked for anew, and forgotten afterwards."""
    mlp_sgd._load.cache_clear()
    yield
    mlp_sgd._load.cache_clear()


def model(*hidden: int, classes: int = 4, shape: tuple[int, int, int] = SHAPE) -> Model:
    torch.manual_seed(len(hidden))
    return Model(mlp(input_shape=shape, classes=classes, hidden=hidden))


def rows_of(m: Model, count: int) -> BatchedPerceptron:
    rows = BatchedPerceptron.of(m.perceptron, count)
    assert rows is not None
    return rows


def batches(sizes: list[int], seed: int = 0, classes: int = 4, shape: tuple[int, int, int] = SHAPE):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, *shape, generator=draw), torch.randint(classes, (n,), generator=draw)) for n in sizes]


def reference(m: Model, steps, rate: float) -> tuple[Tensor, list[float], float]:
    """The same steps in float64, by autograd, targets being classes or shares: parameters, losses, and how near to its
    kink a rectifier came. What rounds otherwise may fall on the other side of one, with another gradient."""
    widths = [m.perceptron.shapes[0][1], *(out for out, _ in m.perceptron.shapes)]
    flat, losses, kink = m.flat.double(), [], 1.0
    for x, y in steps:
        flat = flat.detach().requires_grad_()
        h, at = x.double().flatten(1), 0
        for i, (into, out) in enumerate(pairwise(widths)):
            weight, bias = flat[at : at + into * out].view(out, into), flat[at + into * out : at + into * out + out]
            kink = min(kink, float(h.detach().abs().min())) if i else kink
            h, at = (h.relu() if i else h) @ weight.T + bias, at + into * out + out
        loss = torch.nn.functional.cross_entropy(h, y if y.dim() == 1 else y.double())
        (gradient,) = torch.autograd.grad(loss, flat)
        flat = flat - rate * gradient
        losses.append(loss.item())
    return flat.detach(), losses, kink


@needs_compiler
@settings(max_examples=settings.default.max_examples // 2)
@given(
    hidden=st.lists(st.integers(1, 40), max_size=3),
    sizes=st.lists(st.integers(1, 23), min_size=1, max_size=4),
    classes=st.integers(2, 13),
    side=st.integers(1, 23),
    soft=st.booleans(),
)
def test_steps_are_those_of_float64_to_rounding(hidden, sizes, classes, side, soft) -> None:
    shape = (1, side, side)
    m = model(*hidden, classes=classes, shape=shape)
    steps = batches(sizes, side, classes, shape)
    if soft:
        steps = [(x, torch.softmax(torch.randn(len(x), classes), 1) * 0.7) for x, _ in steps]
    expected, losses, kink = reference(m, steps, 0.05)
    assume(kink > 1e-5)
    start = m.flat.clone()
    told = m.perceptron.descend_all(steps, 0.05)
    assert told is not None, "small steps are compiled"
    torch.testing.assert_close(told.double(), torch.tensor(losses, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(m.flat.double(), expected, rtol=2e-5, atol=2e-6)
    assert not torch.equal(m.flat, start)


@needs_compiler
@pytest.mark.parametrize("hidden", [(), (16,), (9, 33)])
def test_no_bit_depends_on_how_many_steps_or_models_a_call_takes(hidden: tuple[int, ...]) -> None:
    m, sizes = model(*hidden), [10, 10, 7, 64]
    rows = rows_of(m, 3)
    rows.flat.copy_(torch.randn(3, len(m.flat), generator=torch.Generator().manual_seed(1)) * 0.1)
    before, own = rows.flat.clone(), [batches(sizes, seed) for seed in range(3)]
    together = rows.descend_all(own, 0.1)
    for start, row, told, steps in zip(before, rows.flat, together, own, strict=True):
        m.flat.copy_(start)
        assert torch.equal(m.descend_all(steps, 0.1), told) and torch.equal(m.flat, row)
        m.flat.copy_(start)
        assert torch.equal(torch.stack([m.descend(x, y, 0.1) for x, y in steps]), told) and torch.equal(m.flat, row)
        m.flat.copy_(start)
        hard = [(x, torch.nn.functional.one_hot(y, 4).float()) for x, y in steps]
        assert torch.equal(m.perceptron.descend_all(hard, 0.1), told) and torch.equal(m.flat, row)


@needs_compiler
@pytest.mark.parametrize("hidden", [(), (9, 33)])
def test_samples_picked_from_a_data_set_give_the_bits_of_their_batches(hidden: tuple[int, ...]) -> None:
    m, sizes, draw = model(*hidden), [10, 1, 64, 10], torch.Generator().manual_seed(5)
    x, y = torch.randn(200, *SHAPE, generator=draw), torch.randint(4, (200,), generator=draw)
    orders = [torch.randint(200, (sum(sizes),), generator=draw) for _ in range(3)]
    rows = rows_of(m, 3)
    starts = list(torch.randn(3, len(m.flat), generator=draw) * 0.1)
    rows.flat.copy_(torch.stack(starts))
    own = [list(zip(x[o].split(sizes), y[o].split(sizes), strict=True)) for o in orders]
    losses = rows.descend_all(own, 0.1)
    expected = rows.flat - torch.stack(starts)
    deltas = list(torch.empty_like(expected))
    rows.begin(starts, deltas)
    assert torch.equal(rows.pick([IndexedBatches(x, y, o, sizes) for o in orders], 0.1), losses)
    rows.finish()
    assert torch.equal(torch.stack(deltas), expected)


@needs_compiler
@pytest.mark.parametrize("bad", ["index", "below", "class", "count", "shares", "int32", "stride", "large"])
def test_a_sample_that_is_not_there_is_not_picked_and_moves_nothing(bad: str) -> None:
    m = model(8)
    x, y = (part[20:40] for part in batches([60])[0])  # beyond both ends are samples, but none of these
    order = torch.arange(20)
    order[3] = {"index": 20, "below": -1}.get(bad, 3)
    y[7] = 4 if bad == "class" else 0
    if bad == "shares":
        y = torch.nn.functional.one_hot(y, 4).float()
    if bad == "int32":
        order = order.int()
    if bad == "stride":
        order = torch.arange(40).div(2, rounding_mode="floor")[::2]
    sizes = {"count": [10, 9], "large": [mlp_sgd.SAMPLES + 1]}.get(bad, [10, 10])
    if bad == "large":
        order = torch.zeros(sizes[0], dtype=torch.int64)
    rows, start = rows_of(m, 1), m.flat.clone()
    rows.begin([m.flat], [torch.zeros_like(start)])
    picked = IndexedBatches(x, y, order, sizes)
    assert rows.pick([picked], 0.1) is None
    assert m.perceptron._descent.pick(m.flat[None], [picked], 0.1) is None, "also without the perceptron's look"
    rows.finish()
    assert torch.equal(m.flat, start)


@needs_compiler
def test_a_step_in_a_batch_with_one_too_large_has_the_same_bits() -> None:
    m, steps = model(8), batches([10, mlp_sgd.SAMPLES + 1])
    start = m.flat.clone()
    assert m.perceptron.descend_all(steps, 0.1) is None and torch.equal(m.flat, start)
    losses = m.descend_all(steps, 0.1)
    end = m.flat.clone()
    m.flat.copy_(start)
    alone = m.perceptron.descend_all(steps[:1], 0.1)
    assert torch.equal(losses[:1], alone)
    m.descend(*steps[1], 0.1)
    assert torch.equal(m.flat, end)


def test_the_rule_is_batch_size_and_parameters() -> None:
    narrow, wide = mlp_sgd.Descent([25, 4]), mlp_sgd.Descent([25, 10_000, 4])
    there = mlp_sgd.status() == "compiled"
    assert narrow.fits(1) == narrow.fits(mlp_sgd.SAMPLES) == there
    assert not narrow.fits(mlp_sgd.SAMPLES + 1) and not narrow.fits(0) and not wide.fits(1)
    assert not model(8).perceptron.compiles(0)
    assert not Model(mlp(input_shape=SHAPE, classes=4, hidden=(8,)).double()).perceptron.compiles(5)


@needs_compiler
@pytest.mark.parametrize("bad", [-1, 4])
def test_a_class_out_of_range_is_an_error_and_moves_nothing(bad: int) -> None:
    m = model(8)
    ((x, y),) = batches([6])
    start, y[3] = m.flat.clone(), bad
    with pytest.raises(IndexError, match="out of bounds"):
        m.descend(x, y, 0.1)
    with pytest.raises((ValueError, RuntimeError)):
        m.descend(x[:5], batches([6])[0][1], 0.1)
    assert torch.equal(m.flat, start)


@needs_compiler
def test_numbers_that_are_not_finite_show_in_the_loss() -> None:
    m = model(8)
    m.flat[3] = float("inf")
    assert not m.descend(*batches([6])[0], 0.1).isfinite()


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_without_a_compiler_steps_are_the_same_to_rounding(
    compiler: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    m, steps = model(8), batches([6, 3])
    expected, losses, _ = reference(m, steps, 0.1)
    assert mlp_sgd.status().startswith("torch (") and m.perceptron.descend_all(steps, 0.1) is None
    assert m.descend_all(steps, 0.1).tolist() == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(m.flat.double(), expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_a_wrong_step_is_not_used_and_looking_draws_nothing(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_rng_state()
    assert mlp_sgd.status() == "compiled" and torch.equal(torch.get_rng_state(), before)
    mlp_sgd._load.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mlp_sgd, "SOURCE", mlp_sgd.SOURCE.replace("o == y[m] ? 1.0f", "o == y[m] ? 0.9f"))
    assert "not torch's" in mlp_sgd.status()


def test_a_result_says_what_took_its_steps_and_what_computed_its_sums(tmp_path: Path) -> None:
    asked = ["model=mlp_small", "fleet.clients=2", "workers=0", "stop.versions=1"]
    row = Experiment.of(composition.resolved(composition.compose(asked))).run(tmp_path / "run").row
    assert (row["mlp_backend"], row["sum_backend"]) == (mlp_sgd.status(), weighted_sum.status())
