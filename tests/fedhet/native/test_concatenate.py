"""The compiled stack: torch's bits for any widths, places in memory and threads, or the same answer without it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedhet.native import concatenate
from fedhet.numerics import stacking

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def fresh() -> Iterator[None]:
    """The loop is looked for anew, and forgotten afterwards."""
    concatenate._load.cache_clear()
    yield
    concatenate._load.cache_clear()


def matrices(rows: int, widths: tuple[int, ...], dim: int, shift: int = 0) -> tuple[list[Tensor], list[float]]:
    """Parts whose memory begins `shift` numbers after a multiple of 64 bytes."""
    draw, parts = torch.Generator().manual_seed(rows + sum(widths)), []
    for i, width in enumerate(widths):
        room = torch.randn(rows * width + shift, generator=draw) * 10.0 ** (i % 7 - 3)
        room[::5] = -0.0
        parts.append(room[shift:].view((rows, width) if dim else (width, rows)))
    return parts, [(-1) ** i / (i + 3.3) for i in range(len(widths))]


def place(parts: list[Tensor], dim: int, shift: int = 0) -> Tensor:
    """Memory for the result, with a number on either side that must stay."""
    across, along = parts[0].shape[1 - dim], sum(p.shape[dim] for p in parts)
    room = torch.full((across * along + shift + 1,), 7.0)
    return room[shift:-1].view((across, along) if dim else (along, across))


def same(found: Tensor, wanted: Tensor) -> bool:
    return torch.equal(found.view(torch.int32), wanted.view(torch.int32))


WIDTHS = [(64, 32, 16, 4, 4), (5, 1, 3), (8,), (300, 7, 257), (12, 0, 20), (1024, 4)]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3, 50])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("widths", WIDTHS)
def test_every_bit_is_torchs_for_any_widths_places_and_threads(widths: tuple[int, ...], dim: int, threads: int) -> None:
    call = concatenate._load()
    assert not isinstance(call, str), call
    for rows in (1, 2, 37):
        for shift in (0, 1, 4):
            parts, scales = matrices(rows, widths, dim, shift)
            for at in (0, 3, 4):
                out = place(parts, dim, at)
                concatenate._run(call, parts, out, None, dim, threads)
                assert same(out, torch.cat(parts, dim))
                concatenate._run(call, parts, out, scales, dim, threads)
                assert same(out, torch.cat([p * c for p, c in zip(parts, scales, strict=True)], dim))
                around = torch.as_strided(out, (1,), (1,), out.storage_offset() + out.numel())
                assert around == 7.0 and bool((out._base[:at] == 7.0).all())  # type: ignore[index]


@needs_compiler
def test_a_scale_of_one_changes_nothing_and_infinity_and_nan_come_through() -> None:
    parts, _ = matrices(37, (64, 3), 1)
    parts[0][3, 5], parts[1][7, 1] = float("inf"), float("nan")
    call = concatenate._load()
    assert not isinstance(call, str)
    for scales in (None, [1.0, 1.0]):
        out = place(parts, 1)
        concatenate._run(call, parts, out, scales, 1, 2)
        assert same(out, torch.cat(parts, 1))


@needs_compiler
def test_large_contiguous_float32_takes_the_compiled_loop_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(concatenate, "LEAST", 1000)
    monkeypatch.setattr(concatenate, "_run", lambda call, parts, out, *rest: taken.append(out.numel()))
    parts, scales = matrices(10, (64, 36), 1)
    assert concatenate.stack(parts, place(parts, 1), scales, dim=1)
    assert taken == [1000]
    for others in (
        [p[:9] for p in parts],  # too few
        [p.double() for p in parts],
        [p.T.contiguous().T for p in parts],  # not contiguous
        [p[:, 1:].contiguous() for p in matrices(12, (64, 36), 1)[0]],  # short rows at odd places
    ):
        out = place(others, 1).to(others[0].dtype)
        assert not concatenate.stack(others, out, dim=1)
        assert torch.equal(stacking.stack(others, out, dim=1), torch.cat(others, 1))
    assert taken == [1000]


def test_parts_that_do_not_make_up_the_result_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concatenate, "LEAST", 1)
    parts, scales = matrices(4, (3, 2), 1)
    for out, factors, dim in (
        (torch.empty(4, 6), scales, 1),
        (torch.empty(3, 5), scales, 1),
        (torch.empty(4, 5, dtype=torch.float64), scales, 1),
        (torch.empty(4, 5), scales, 0),
    ):
        assert not concatenate.stack(parts, out, factors, dim=dim), "the C code would write beyond an end"
        with pytest.raises(ValueError, match="do not make up"):
            stacking.stack(parts, out, factors, dim=dim)
    assert not concatenate.stack(parts, torch.empty(4, 5), scales[:1], dim=1)
    with pytest.raises(ValueError, match="2 parts with 1 scales"):
        stacking.stack(parts, torch.empty(4, 5), scales[:1], dim=1)


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_without_a_compiler_the_stack_is_the_same_and_the_status_says_why(
    compiler: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concatenate, "LEAST", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    for dim in (0, 1):
        parts, scales = matrices(9, (5, 4), dim)
        assert same(stacking.stack(parts, place(parts, dim), dim=dim), torch.cat(parts, dim))
        wanted = torch.cat([p * c for p, c in zip(parts, scales, strict=True)], dim)
        assert same(stacking.stack(parts, place(parts, dim), scales, dim=dim), wanted)
    assert concatenate.status() == {
        "/nowhere/cc": "torch (no C compiler: CC=/nowhere/cc is not found)",
        "false": "torch (the compiled loop is not usable: the compiler ended with 1: )",
    }.get(compiler)
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
@pytest.mark.parametrize("wrong", [("x[j] * c", "x[j] + c"), ("*x = s->parts[i]", "*x = s->parts[0]")])
def test_a_loop_with_other_bits_is_not_used(
    wrong: tuple[str, str], fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert wrong[0] in concatenate.SOURCE
    monkeypatch.setattr(concatenate, "SOURCE", concatenate.SOURCE.replace(*wrong))
    assert "other bits" in concatenate.status()
