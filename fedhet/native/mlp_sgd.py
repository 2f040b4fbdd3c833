"""Compiled steps of gradient descent on small perceptrons.

A step of a small model on a small batch is mostly overhead: torch makes twenty calls, and its matrix products lay their
operands out anew for ten samples. Here one call takes all steps of one model, or of several that lie side by side, each
of them as it would alone: forward, backward and the step inside the product, W += -rate g^T h, in blocks that stay in
registers. It rounds otherwise than torch, so whether a step is taken here follows from sizes alone (`fits`), never from
how it was asked for. Larger models and batches are left to torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fedhet.native.compiler import Call, Source
from fedhet.native.mlp_sgd_c import SOURCE

if TYPE_CHECKING:
    from fedhet.types import Batch, IndexedBatches

SAMPLES = 64
"""Largest batch that gains; beyond it torch's own layout of the operands pays for itself."""

NUMBERS = 1 << 18
"""Largest model, in parameters: one megabyte."""

LAYERS = 8
"""Most layers."""


class Ends(NamedTuple):
    """Where the rows of one call start and end, if not in the rows themselves: contiguous vectors, one for each row.

    With `begin` the rows start as these vectors, whatever they hold. With `deltas` the differences of the rows from
    `since` are written there, and the rows hold nothing afterwards. This spares copying a model into its row and its
    difference out of it.
    """

    begin: Sequence[Tensor] = ()
    deltas: Sequence[Tensor] = ()
    since: Sequence[Tensor] = ()


IN_PLACE = Ends()

Places: TypeAlias = ctypes.Array[ctypes.c_void_p] | None


class Descent:
    """Compiled steps for perceptrons of one shape: `wide` numbers in each layer, the inputs first."""

    def __init__(self, wide: Sequence[int]) -> None:
        self.size = sum(a * b + b for a, b in pairwise(wide))
        self._wide, self._inner = tuple(wide), sum(wide[1:])
        self._array = (ctypes.c_int64 * len(wide))(*wide)
        self._room = torch.empty(0)

    def fits(self, samples: int) -> bool:
        """Whether steps on so many samples are taken here: small enough, and the compiled function is there."""
        small = 0 < samples <= SAMPLES and self.size <= NUMBERS and len(self._wide) <= LAYERS + 1
        return small and not isinstance(_load(), str)

    def steps(
        self, flat: Tensor, batches: Sequence[Batch], sizes: Sequence[int], rate: float, ends: Ends = IN_PLACE
    ) -> Tensor | None:
        """Steps of length `rate` of each row of `flat` (count, parameters), in place; the mean losses before each,
        (count, steps).

        `batches` are those of the first row, then those of the second; the t-th of each holds sizes[t] samples: inputs
        (n, ...), and classes (n,), int64, or every class's share (n, classes), float32, in all of them; contiguous.
        None, with nothing done, if a class is out of range or shapes do not fit together.
        """
        return self.take(_call(), flat, batches, sizes, rate, ends)

    def take(
        self,
        call: Call,
        flat: Tensor,
        batches: Sequence[Batch],
        sizes: Sequence[int],
        rate: float,
        ends: Ends = IN_PLACE,
    ) -> Tensor | None:
        """`steps` by the function given."""
        into, out = self._wide[0], self._wide[-1]
        shares = batches[0][1].is_floating_point()
        wanted = [(n * into, n * out if shares else n) for n in sizes]
        if [(x.numel(), y.numel()) for x, y in batches] != wanted * len(flat):
            return None
        x, y = (_places(part) for part in zip(*batches, strict=True))
        return self._run(call, flat, x, None if shares else y, y if shares else None, None, 0, sizes, rate, ends)

    def pick(self, flat: Tensor, picked: Sequence[IndexedBatches], rate: float, ends: Ends = IN_PLACE) -> Tensor | None:
        """`steps` on samples of one data set that are fetched by index, those of each row in `picked[row]`.

        None, with nothing done, also if an index is out of range.
        """
        x, y, _, sizes = picked[0]
        total, starts = sum(sizes), [0, *accumulate(sizes)][:-1]
        if any(p.x is not x or p.y is not y or p.sizes != sizes or p.order.shape != (total,) for p in picked):
            return None
        if any(p.order.dtype != torch.int64 or not p.order.is_contiguous() for p in picked):
            return None
        if x.numel() != len(x) * self._wide[0] or y.shape != (len(x),):
            return None
        many = len(sizes) * len(picked)
        here = [p.order.data_ptr() + 8 * at for p in picked for at in starts]
        x_at, y_at, index = (
            (ctypes.c_void_p * many)(*at) for at in ([x.data_ptr()] * many, [y.data_ptr()] * many, here)
        )
        return self._run(_call(), flat, x_at, y_at, None, index, len(x), sizes, rate, ends)

    def _run(
        self,
        call: Call,
        flat: Tensor,
        x: Places,
        y: Places,
        shares: Places,
        index: Places,
        held: int,
        sizes: Sequence[int],
        rate: float,
        ends: Ends,
    ) -> Tensor | None:
        count, steps = len(flat), len(sizes)
        if flat.numel() != count * self.size or len(ends.deltas) != len(ends.since):
            return None
        if not all(0 < n <= SAMPLES for n in sizes):
            return None  # the C code has room for no more
        if any(vectors and [v.numel() for v in vectors] != [self.size] * count for vectors in ends):
            return None
        room = max(sizes) * (4 * self._inner + 2 * self._wide[0])
        if len(self._room) < room:
            self._room = torch.empty(room)
        losses = torch.empty(count, steps)
        # where rows are not what comes of it, one is room enough for all, and stays in the cache
        stride = 0 if ends.begin and ends.deltas else self.size
        wrong = call(
            flat.data_ptr(), stride, count, *map(_places, ends), x, y, shares, index, held,
            (ctypes.c_int64 * steps)(*sizes), steps, self._array, len(self._wide) - 1, rate, losses.data_ptr(),
            self._room.data_ptr(),
        )  # fmt: skip
        return None if wrong else losses


def _places(vectors: Sequence[Tensor]) -> Places:
    """Addresses of these for C; None if there are none."""
    return (ctypes.c_void_p * len(vectors))(*[v.data_ptr() for v in vectors]) if vectors else None


def status() -> str:
    """What takes the steps of small perceptrons: "compiled", or "torch (WHY)"."""
    found = _load()
    return f"torch ({found})" if isinstance(found, str) else "compiled"


def _call() -> Call:
    call = _load()
    assert not isinstance(call, str), call
    return call


@cache
def _load() -> Call | str:
    """The compiled function, or why there is none."""
    pointer, many = ctypes.c_void_p, ctypes.c_int64
    source = Source("descent", "descend", SOURCE, ["-O2", "-ffp-contract=fast", "-fno-math-errno"])
    types = [pointer, many, many, *[pointer] * 7, many, pointer, many, pointer, many, ctypes.c_float, *[pointer] * 2]
    call = source.load(types, many)
    if isinstance(call, str):
        return call
    return call if _agrees(call) else "the compiled step is not torch's on this processor"


@torch.enable_grad()
def _agrees(call: Call) -> bool:
    """Whether a step is torch's to rounding, for widths and batches that are no multiples of anything."""
    draw = torch.Generator().manual_seed(1)
    for wide, n in (((27, 14, 13, 3), 9), ((405, 7), 6)):
        pairs = list(pairwise(wide))
        leaves = [torch.randn(*shape, generator=draw) * 0.2 for a, b in pairs for shape in ((b, a), (b,))]
        x, y = torch.randn(n, wide[0], generator=draw), torch.randint(wide[-1], (n,), generator=draw)
        h = x
        for i in range(len(pairs)):
            weight, bias = (leaf.requires_grad_() for leaf in leaves[2 * i : 2 * i + 2])
            h = nn.functional.linear(h.relu() if i else h, weight, bias)
        loss = nn.functional.cross_entropy(h, y)
        steps = torch.autograd.grad(loss, leaves)
        flat = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
        expected = flat - 0.5 * torch.cat([step.reshape(-1) for step in steps])
        told = Descent(wide).take(call, flat[None], [(x, y)], [n], 0.5)
        near = told is not None and torch.allclose(told, loss.detach(), rtol=1e-5)
        if not near or not torch.allclose(flat, expected, rtol=1e-4, atol=1e-6):
            return False
    return True
