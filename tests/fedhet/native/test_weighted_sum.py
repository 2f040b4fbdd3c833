"""The compiled sum: torch's bits for any number of vectors, elements and threads, or the same answer without it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedhet.native import weighted_sum
from fedhet.numerics import tree

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def fresh() -> Iterator[None]:
    """The loop is looked for anew, and forgotten afterwards."""
    weighted_sum._load.cache_clear()
    yield
    weighted_sum._load.cache_clear()


def vectors(count: int, size: int) -> tuple[list[Tensor], list[float]]:
    draw = torch.Generator().manual_seed(count * 100_003 + size)
    rows = [torch.randn(size, generator=draw) * 10.0 ** (i % 7 - 3) for i in range(count)]
    return rows, [(-1) ** i / (i + 3.3) for i in range(count)]


def one_by_one(rows: list[Tensor], coefficients: list[float]) -> Tensor:
    total = torch.zeros(len(rows[0]))
    for row, c in zip(rows, coefficients, strict=True):
        total.add_(row, alpha=c)
    return total


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 15), (4, 4096), (5, 4097), (9, 12_301), (3, 8191)])
def test_every_bit_is_torchs_for_any_number_of_threads(count: int, size: int, threads: int) -> None:
    call = weighted_sum._load()
    assert not isinstance(call, str), call
    rows, coefficients = vectors(count, size)
    out = torch.full((size,), float("nan"))
    weighted_sum._run(call, rows, coefficients, out, threads)
    assert torch.equal(out.view(torch.int32), one_by_one(rows, coefficients).view(torch.int32))


@needs_compiler
def test_infinity_and_nan_come_through() -> None:
    rows, coefficients = vectors(5, 5000)
    rows[2][17], rows[3][4099] = float("inf"), float("nan")
    call = weighted_sum._load()
    assert not isinstance(call, str)
    out = torch.empty(5000)
    weighted_sum._run(call, rows, coefficients, out, 2)
    assert out[17].isinf() and out[4099].isnan() and int(out.isfinite().sum()) == 4998


@needs_compiler
def test_large_sums_take_the_compiled_loop_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted_sum, "LEAST", 1000)
    rows, coefficients = vectors(4, 250)
    out = torch.empty(250)
    assert weighted_sum.weighted_sum(rows, coefficients, out)
    assert torch.equal(out, one_by_one(rows, coefficients))
    assert not weighted_sum.weighted_sum([r[:249] for r in rows], coefficients, out[:249])  # too few
    assert not weighted_sum.weighted_sum([r.double() for r in rows], coefficients, out.double())
    assert not weighted_sum.weighted_sum([r.repeat(2)[::2] for r in rows], coefficients, out)  # not contiguous
    assert not weighted_sum.weighted_sum([*rows[:3], torch.ones(300)], coefficients, out)  # not of one length
    assert not weighted_sum.weighted_sum(rows, coefficients[:3], out)


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_without_a_compiler_the_sum_is_the_same_and_the_status_says_why(
    compiler: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = tree.Schema((("w", tree.Leaf((600,))),))
    rows, coefficients = vectors(7, 600)
    trees = [tree.FlatTree(schema, row) for row in rows]
    monkeypatch.setattr(weighted_sum, "LEAST", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    assert torch.equal(tree.weighted_sum(trees, coefficients)["w"], one_by_one(rows, coefficients))
    assert weighted_sum.status() == {
        "/nowhere/cc": "torch (no C compiler: CC=/nowhere/cc is not found)",
        "false": "torch (the compiled loop is not usable: the compiler ended with 1: )",
    }.get(compiler)
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_a_loop_that_rounds_otherwise_is_not_used(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        weighted_sum, "SOURCE", weighted_sum.SOURCE.replace("fmaf(c, x[j], sum[j])", "(float)(c * x[j]) + sum[j]")
    )
    assert "rounds otherwise" in weighted_sum.status()
