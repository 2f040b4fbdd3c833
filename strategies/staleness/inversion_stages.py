"""Layers of plain chains with their first and second derivatives written out, as matrix products.

For a loss L and a direction v of the parameters, let R(.) be the derivative along v (Pearlmutter, "Fast Exact
Multiplication by the Hessian", Neural Computation 6(1), 1994). Beside forward and backward each stage has both under R:

    convolution   a' = W u(a) + b      R(a') = V u(a) + W u(R a) + V_b
                  dW = d u(a)^T        R(dW) = R(d) u(a)^T + d u(R a)^T
                  da = u^T(W^T d)      R(da) = u^T(W^T R(d) + V^T d)

with u the unfolding into columns of patches and u^T its transpose. A linear layer is the same without u; rectifiers and
maxima keep what they chose. Activations are (channels, height, width, n), or (units, n) behind a flattening: with the
images side by side, patches are cut and put back in long rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from strategies.staleness.inversion_room import Room

Note = dict[str, Any]
"""What one stage keeps of one step."""


class Stage(Protocol):
    """`w` and `v`: parameters and direction as one vector. `note`: this stage's of this step. g, h: added to."""

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor: ...
    def backward(self, d: Tensor, w: Tensor, g: Tensor, note: Note, *, deeper: bool) -> Tensor: ...
    def along(self, ra: Tensor | None, w: Tensor, v: Tensor, note: Note) -> Tensor | None: ...
    def back_along(self, rd: Tensor, w: Tensor, v: Tensor, h: Tensor, note: Note) -> Tensor: ...


@dataclass(frozen=True)
class Affine:
    """W a + b on patches of `kernel` if that is given, else on whole columns. `at` is where W lies in the vector,
    `bias` where b does."""

    out: int
    width: int
    at: int
    bias: int | None
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    room: Room = field(default_factory=Room)

    def _matrix(self, w: Tensor) -> Tensor:
        return w[self.at : self.at + self.out * self.width].view(self.out, self.width)

    def _plus(self, a: Tensor, w: Tensor) -> Tensor:
        return a if self.bias is None else a.add_(w[self.bias : self.bias + self.out, None])

    def _add(self, g: Tensor, columns: Tensor, d: Tensor) -> None:
        self._matrix(g).addmm_(d, columns.t())

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor:
        if "columns" not in note:
            note["columns"] = note["own"] = self.unfold(a)
        note["shape"] = a.shape
        return self._shaped(self._plus(self._matrix(w) @ note["columns"], w), a.shape)

    def backward(self, d: Tensor, w: Tensor, g: Tensor, note: Note, *, deeper: bool) -> Tensor:
        note["d"] = d = d.reshape(self.out, -1)
        self._add(g, note["columns"], d)
        if self.bias is not None:
            g[self.bias : self.bias + self.out] += d.sum(1)
        return self._fold(self._matrix(w).t(), d, note["shape"]) if deeper else d

    def along(self, ra: Tensor | None, w: Tensor, v: Tensor, note: Note) -> Tensor:
        moved = self._plus(self._matrix(v) @ note["columns"], v)
        if ra is not None:
            note["r columns"] = self.unfold(ra)
            moved.addmm_(self._matrix(w), note["r columns"])
        return self._shaped(moved, note["shape"])

    def back_along(self, rd: Tensor, w: Tensor, v: Tensor, h: Tensor, note: Note) -> Tensor:
        rd = rd.reshape(self.out, -1)
        self._add(h, note["columns"], rd)
        if "r columns" in note:
            self._add(h, note["r columns"], note["d"])
        if self.bias is not None:
            h[self.bias : self.bias + self.out] += rd.sum(1)
        if self.kernel is not None:
            for name in {"own", "r columns"} & set(note):
                self.room.give(note[name])
        both = torch.cat([self._matrix(w), self._matrix(v)]).t()
        return self._fold(both, torch.cat([rd, note["d"]]), note["shape"])

    def _shaped(self, rows: Tensor, shape: Any) -> Tensor:
        return rows if self.kernel is None else rows.view(self.out, *self._after(shape), shape[-1])

    def _after(self, shape: Any) -> tuple[int, int]:
        assert self.kernel is not None
        high = (shape[1] + 2 * self.padding[0] - self.kernel[0]) // self.stride[0] + 1
        return high, (shape[2] + 2 * self.padding[1] - self.kernel[1]) // self.stride[1] + 1

    def unfold(self, a: Tensor) -> Tensor:
        """Columns of patches: (channels * k * k, height * width * n)."""
        if self.kernel is None:
            return a
        if any(self.padding):
            a = nn.functional.pad(a, (0, 0) + (self.padding[1],) * 2 + (self.padding[0],) * 2)
        patches = a.unfold(1, self.kernel[0], self.stride[0]).unfold(2, self.kernel[1], self.stride[1])
        patches = patches.permute(0, 4, 5, 1, 2, 3)
        columns = self.room.take(self.width, patches.numel() // self.width, a)
        columns.view(patches.shape).copy_(patches)
        return columns

    def _fold(self, matrix: Tensor, d: Tensor, shape: Any) -> Tensor:
        """The transpose of `unfold` on matrix @ d: every patch is added back to where it was cut out."""
        if self.kernel is None:
            return matrix @ d
        (kh, kw), (sh, sw), (ph, pw) = self.kernel, self.stride, self.padding
        high, wide = self._after(shape)
        columns = torch.mm(matrix, d, out=self.room.take(self.width, d.shape[1], d))
        parts = columns.view(shape[0], kh, kw, high, wide, shape[3])
        whole: Tensor = d.new_zeros(shape[0], shape[1] + 2 * ph, shape[2] + 2 * pw, shape[3])
        for i in range(kh):
            for j in range(kw):
                whole[:, i : i + sh * (high - 1) + 1 : sh, j : j + sw * (wide - 1) + 1 : sw] += parts[:, i, j]
        self.room.give(columns)
        return whole[:, ph : ph + shape[1], pw : pw + shape[2]]


@dataclass(frozen=True)
class Rectify:
    """max(a, 0), with derivative 0 at 0."""

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor:
        note["mask"] = mask = (a > 0).to(a.dtype)
        return a * mask

    def backward(self, d: Tensor, w: Tensor, g: Tensor, note: Note, *, deeper: bool) -> Tensor:
        kept: Tensor = d * note["mask"]
        return kept

    def along(self, ra: Tensor | None, w: Tensor, v: Tensor, note: Note) -> Tensor | None:
        return None if ra is None else ra * note["mask"]

    def back_along(self, rd: Tensor, w: Tensor, v: Tensor, h: Tensor, note: Note) -> Tensor:
        return self.backward(rd, w, h, note, deeper=True)


@dataclass(frozen=True)
class Maxima:
    """The maximum of every 2 x 2 square, the first one of equals; a last odd row or column is left out."""

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor:
        note["shape"] = a.shape
        corners = _corners(a)
        top, left = torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3])
        most, left_out, masks = torch.maximum(top, left), None, []
        for corner in corners:
            hit = corner == most
            if left_out is not None:
                hit &= left_out
            left_out = ~hit if left_out is None else left_out & ~hit
            masks.append(hit.to(a.dtype))
        note["masks"] = masks
        return most

    def backward(self, d: Tensor, w: Tensor, g: Tensor, note: Note, *, deeper: bool) -> Tensor:
        shape = note["shape"]
        whole = d.new_empty(shape) if shape[1] % 2 == shape[2] % 2 == 0 else d.new_zeros(shape)
        for corner, mask in zip(_corners(whole), note["masks"], strict=True):
            torch.mul(d, mask, out=corner)
        return whole

    def along(self, ra: Tensor | None, w: Tensor, v: Tensor, note: Note) -> Tensor | None:
        if ra is None:
            return None
        first, *others = zip(_corners(ra), note["masks"], strict=True)
        kept: Tensor = first[0] * first[1]
        for corner, mask in others:
            kept.addcmul_(corner, mask)
        return kept

    def back_along(self, rd: Tensor, w: Tensor, v: Tensor, h: Tensor, note: Note) -> Tensor:
        return self.backward(rd, w, h, note, deeper=True)


@dataclass(frozen=True)
class Flat:
    """(channels, height, width, n) to (units, n), units in the order a flattened image has them."""

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor:
        note["shape"] = a.shape
        return a.reshape(-1, a.shape[-1])

    def backward(self, d: Tensor, w: Tensor, g: Tensor, note: Note, *, deeper: bool) -> Tensor:
        return d.reshape(note["shape"])

    def along(self, ra: Tensor | None, w: Tensor, v: Tensor, note: Note) -> Tensor | None:
        return None if ra is None else self.forward(ra, w, {})

    def back_along(self, rd: Tensor, w: Tensor, v: Tensor, h: Tensor, note: Note) -> Tensor:
        return self.backward(rd, w, h, note, deeper=True)


def _corners(a: Tensor) -> list[Tensor]:
    """The four interleaved quarters of the 2 x 2 squares, row by row; views."""
    high, wide = a.shape[1] // 2 * 2, a.shape[2] // 2 * 2
    return [a[:, i:high:2, j:wide:2] for i in (0, 1) for j in (0, 1)]
