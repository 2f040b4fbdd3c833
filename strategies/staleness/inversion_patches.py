"""Convolutions as matrix products on patches, and 2 x 2 max pooling after them, with little memory traffic.

Columns of patches are (channels * taps, height, width, n), with the batch dimension last. For the input of a network,
whose patches are extracted once and used at every step, they have all taps. Elsewhere only the taps along the width are
extracted; those along the height are the same columns some rows further on, with one product for each:

    a'[:, y] = sum_i W_i u(a)[:, y + i]

That is a fifth of the memory for 5 x 5 patches. If 2 x 2 max pooling follows, columns have the even positions of a row
before the odd ones, so that the four corners of the squares are blocks: (out, height / 2, 4, width / 2, n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from strategies.staleness.inversion_room import Room
from strategies.staleness.inversion_stages import Note, Terms

EXACT = 1 << 24
"""Largest count of ones that is exact as a float32 sum."""


@dataclass(frozen=True)
class Patches:
    """The products of a convolution: W at `at`, (out, channels, *kernel), b at `bias`. whole: extract all taps. pooled:
    2 x 2 max pooling follows. A row of ones in the columns multiplies b."""

    out: int
    channels: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    at: int
    bias: int | None
    whole: bool
    pooled: bool
    room: Room

    @property
    def _shifts(self) -> int:
        """The number of products; columns have this number minus one more rows than outputs."""
        return 1 if self.whole else self.kernel[0]

    @property
    def _taken(self) -> int:
        """Rows of the columns that come from the input."""
        return self.channels * math.prod(self.kernel) // self._shifts

    @property
    def _rows(self) -> int:
        return self._taken + (self.bias is not None)

    def matrix(self, w: Tensor) -> Tensor:
        """(shifts, out, rows)."""
        made = w.new_zeros(self._shifts, self.out, self._rows)
        self._weights(made[:, :, : self._taken]).copy_(self._weight(w))
        if self.bias is not None:
            made[0, :, -1] = w[self.bias : self.bias + self.out]
        return made

    def _weight(self, w: Tensor) -> Tensor:
        """A view of W, (shifts, out, channels, other taps)."""
        weight = w[self.at : self.at + self.out * self.channels * math.prod(self.kernel)]
        return weight.view(self.out, self.channels, self._shifts, -1).permute(2, 0, 1, 3)

    def _weights(self, made: Tensor) -> Tensor:
        """The same view of matrices without b."""
        return made.view(*made.shape[:2], self.channels, -1)

    def cut(self, a: Tensor, one: float, note: Note) -> Tensor:
        if any(self.padding):
            a = nn.functional.pad(a, (0, 0) + (self.padding[1],) * 2 + (self.padding[0],) * 2)
        view = a.as_strided(*self._taps(a.shape))
        shape = self._rows, view.shape[3], view.shape[4] * view.shape[5], a.shape[3]
        columns = self.room.keep(note, shape, a)
        if self.bias is not None:
            columns[-1] = one
        columns[: self._taken].view(view.shape).copy_(view)
        return columns

    def _taps(self, shape: Sequence[int]) -> tuple[list[int], list[int]]:
        """Sizes and strides of all patches of an input: channels, taps, rows, places of each rest by 2, n."""
        _, high, wide, n = shape
        rests = 2 if self.pooled else 1
        taps = self.kernel[0] // self._shifts, self.kernel[1]
        rows, columns = ((size - k + 1) // rests * rests for size, k in zip((high, wide), self.kernel, strict=True))
        sizes = [self.channels, *taps, rows + self._shifts - 1, rests, columns // rests, n]
        return sizes, [high * wide * n, wide * n, n, wide * n, n, rests * n, 1]

    def _shifted(self, columns: Tensor) -> Tensor:
        """The columns from each product's first row on: (shifts, rows, outputs), overlapping views."""
        rows, high, wide, n = columns.shape
        sizes = self._shifts, rows, (high - self._shifts + 1) * wide * n
        return columns.as_strided(sizes, (wide * n, high * wide * n, 1))

    def apply(self, terms: Terms) -> Tensor:
        _, high, wide, n = terms[0][1].shape
        high -= self._shifts - 1
        shape = (self.out, high // 2, 4, wide // 2, n) if self.pooled else (self.out, high, wide, n)
        like = terms[0][0]
        out = self.room.scratch("out", shape, like) if self.pooled else like.new_empty(shape)
        flat, beta = out.view(self.out, -1), 0
        for w, columns in terms:
            torch.addbmm(flat, w, self._shifted(columns), beta=beta, out=flat)
            beta = 1
        return out

    def weigh(self, terms: Terms, g: Tensor) -> None:
        made = g.new_zeros(self._shifts, self.out, self._taken)
        for d, columns in terms:
            parts = self._shifted(columns[: self._taken]).transpose(1, 2)
            made.baddbmm_(d.view(1, self.out, -1).expand(self._shifts, -1, -1), parts)
        self._weight(g).add_(self._weights(made))
        if self.bias is not None:
            g[self.bias : self.bias + self.out] += terms[0][0].view(self.out, -1).sum(1)

    def spread(self, terms: Terms, into: Tensor | None = None) -> Tensor:
        if into is None:
            d = terms[0][1]
            high, wide = (2 * d.shape[1], 2 * d.shape[3]) if self.pooled else (d.shape[1], d.shape[2])
            into = self.room.scratch("spread", (self._taken, high + self._shifts - 1, wide, d.shape[-1]), d).zero_()
        parts = self._shifted(into).unbind()
        for w, d in terms:
            flat = d.view(self.out, -1)
            for matrix, part in zip(w[:, :, : self._taken].transpose(1, 2).unbind(), parts, strict=True):
                part.addmm_(matrix, flat)
        return into

    def blank(self, columns: Tensor, note: Note) -> Tensor:
        return self.room.keep(note, (self._taken, *columns.shape[1:]), columns).zero_()

    def put_back(self, columns: Tensor, shape: Sequence[int]) -> Tensor:
        (ph, pw), (_, high, wide, n) = self.padding, shape
        whole = self.room.scratch("whole", (shape[0], high + 2 * ph, wide + 2 * pw, n), columns).zero_()
        sizes, strides = self._taps(whole.shape)
        parts = columns.view(sizes)
        for i in range(sizes[1]):
            for j in range(sizes[2]):
                place = whole.as_strided([sizes[0], *sizes[3:]], [strides[0], *strides[3:]], i * strides[1] + j * n)
                place.add_(parts[:, i, j])
        return whole[:, ph : ph + high, pw : pw + wide]


@dataclass(frozen=True)
class Maxima:
    """2 x 2 max pooling, with ReLU if `rectified` (derivative 0 at 0); ties go to the first value. The input is the
    output of a convolution with the corners in blocks, which is overwritten."""

    rectified: bool
    room: Room

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor:
        most = torch.amax(a, 2, out=self.room.keep(note, (*a.shape[:2], *a.shape[3:]), a))
        hit = note["mask"] = self.room.keep(note, a.shape, a)
        least = nn.functional.threshold(most, 0.0, math.inf) if self.rectified else most
        torch.sub(a, least.unsqueeze(2), out=hit)
        torch.eq(hit, 0.0, out=hit)
        if self.rectified:
            most.clamp_min_(0.0)
        squares = float(most.sign().sum()) if self.rectified else most.numel()
        if float(hit.sum()) != squares or hit.numel() > EXACT:
            _first(hit)
        return most

    def backward(self, d: Tensor, g: Tensor | None, note: Note) -> Tensor:
        return torch.mul(d.unsqueeze(2), note["mask"], out=self.room.keep(note, note["mask"].shape, d))

    def along(self, ra: Tensor, v: Tensor, note: Note) -> Tensor:
        kept = self.room.keep(note, (*ra.shape[:2], *ra.shape[3:]), ra)
        return torch.sum(ra.mul_(note["mask"]), 2, out=kept)

    def back_along(self, rd: Tensor, h: Tensor | None, note: Note) -> Tensor:
        return torch.mul(rd.unsqueeze(2), note["mask"], out=self.room.scratch("back", note["mask"].shape, rd))


def _first(hit: Tensor) -> None:
    """Of several ones among the corners (third dimension) keep the first."""
    free = 1.0 - hit[:, :, 0]
    for corner in hit.unbind(2)[1:]:
        corner.mul_(free)
        free.sub_(corner)
