"""Layers of sequential networks with explicit first and second derivatives, as matrix products.

For a loss L and a direction v of the parameters, let R(.) be the derivative along v (Pearlmutter, "Fast Exact
Multiplication by the Hessian", Neural Computation 6(1), 1994). Each stage has forward, backward, and R of both:

    convolution   a' = W u(a) + b      R(a') = V u(a) + W u(R a) + V_b
                  dW = d u(a)^T        R(dW) = R(d) u(a)^T + d u(R a)^T
                  da = u^T(W^T d)      R(da) = u^T(W^T R(d) + V^T d)

with u the unfolding into columns of patches and u^T its transpose. A linear layer is the same without u; ReLU and max
pooling store their selection. Activations are (channels, height, width, n), or (units, n) after a flattening: with the
batch dimension last, patches are extracted and folded in long rows. Convolution and max pooling: `inversion_patches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Note = dict[str, Any]
"""The values that one stage stores of one step."""

Terms = Sequence[tuple[Tensor, Tensor]]
"""Pairs of factors whose products are summed."""


class Stage(Protocol):
    """A stage of the chain: forward, backward, and their derivatives along a direction.

    `w` and `v`: parameters and direction as one vector. `note`: this stage's stored values of this step. Gradients are
    added to g and h. The order of calls is forward, backward, along, back_along; the last three read the note.
    """

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor: ...
    def backward(self, d: Tensor, g: Tensor, note: Note) -> Tensor: ...
    def along(self, ra: Tensor, v: Tensor, note: Note) -> Tensor: ...
    def back_along(self, rd: Tensor, h: Tensor | None, note: Note) -> Tensor: ...


class Products(Protocol):
    """The position of a layer W a + b in the vector of parameters, and its matrix products."""

    def matrix(self, w: Tensor) -> Tensor:
        """W, with b if there is one, in the form for the product."""
        ...

    def cut(self, a: Tensor, one: float, note: Note) -> Tensor:
        """The columns to multiply with, valid as long as the note. `one` multiplies b: 0 for derivatives R a."""
        ...

    def apply(self, terms: Terms) -> Tensor:
        """The layer's output: the products of matrices and columns."""
        ...

    def weigh(self, terms: Terms, g: Tensor) -> None:
        """The layer's part of a gradient: products of output derivatives and columns, added to g."""
        ...

    def spread(self, terms: Terms, into: Tensor | None = None) -> Tensor:
        """Products of transposed matrices and output derivatives: derivatives by columns, added to `into` if given."""
        ...

    def blank(self, columns: Tensor, note: Note) -> Tensor:
        """Zeros to which derivatives by these columns can be added, valid as long as the note."""
        ...

    def put_back(self, columns: Tensor, shape: Sequence[int]) -> Tensor:
        """The transpose of `cut`, for inputs of this shape; valid until the next call."""
        ...


@dataclass(frozen=True)
class Affine:
    """W a + b."""

    products: Products

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor:
        note["shape"] = a.shape
        return self.enter(self.products.cut(a, 1.0, note), w, note)

    def enter(self, columns: Tensor, w: Tensor, note: Note) -> Tensor:
        """Forward from columns that were extracted before."""
        note["columns"], note["w"] = columns, self.products.matrix(w)
        return self.products.apply([(note["w"], columns)])

    def backward(self, d: Tensor, g: Tensor, note: Note) -> Tensor:
        self.weigh(d, g, note)
        return self.products.put_back(self.products.spread([(note["w"], d)]), note["shape"])

    def weigh(self, d: Tensor, g: Tensor, note: Note) -> None:
        """The layer's part of backward: the gradient by its own parameters."""
        note["d"] = d
        self.products.weigh([(d, note["columns"])], g)

    def along(self, ra: Tensor, v: Tensor, note: Note) -> Tensor:
        note["v"], note["r"] = self.products.matrix(v), self.products.cut(ra, 0.0, note)
        return self.products.apply([(note["v"], note["columns"]), (note["w"], note["r"])])

    def enter_along(self, v: Tensor, note: Note) -> Tensor:
        """`along` for a constant input."""
        note["v"] = self.products.matrix(v)
        return self.products.apply([(note["v"], note["columns"])])

    def back_along(self, rd: Tensor, h: Tensor | None, note: Note) -> Tensor:
        if h is not None:
            self.products.weigh([(rd, note["columns"]), (note["d"], note["r"])], h)
        columns = self.products.spread([(note["w"], rd), (note["v"], note["d"])])
        return self.products.put_back(columns, note["shape"])

    def leave_along(self, rd: Tensor, h: Tensor | None, into: Tensor, note: Note) -> None:
        """`back_along` for a constant input: the derivative by its columns is added to `into`."""
        if h is not None:
            self.products.weigh([(rd, note["columns"])], h)
        self.products.spread([(note["w"], rd), (note["v"], note["d"])], into)


@dataclass(frozen=True)
class Dense:
    """The products of a linear layer: W at `at`, (out, width), and b at `bias`."""

    out: int
    width: int
    at: int
    bias: int | None

    def _weight(self, w: Tensor) -> Tensor:
        return w[self.at : self.at + self.out * self.width].view(self.out, self.width)

    def matrix(self, w: Tensor) -> Tensor:
        return w

    def cut(self, a: Tensor, one: float, note: Note) -> Tensor:
        return a

    def apply(self, terms: Terms) -> Tensor:
        w, a = terms[0]
        out = self._weight(w) @ a
        if self.bias is not None:
            out += w[self.bias : self.bias + self.out, None]
        for w, a in terms[1:]:
            out.addmm_(self._weight(w), a)
        return out

    def weigh(self, terms: Terms, g: Tensor) -> None:
        for d, a in terms:
            self._weight(g).addmm_(d, a.t())
        if self.bias is not None:
            g[self.bias : self.bias + self.out] += terms[0][0].sum(1)

    def spread(self, terms: Terms, into: Tensor | None = None) -> Tensor:
        out = into
        for w, d in terms:
            out = self._weight(w).t() @ d if out is None else out.addmm_(self._weight(w).t(), d)
        assert out is not None
        return out

    def blank(self, columns: Tensor, note: Note) -> Tensor:
        return torch.zeros_like(columns)

    def put_back(self, columns: Tensor, shape: Sequence[int]) -> Tensor:
        return columns


@dataclass(frozen=True)
class Rectify:
    """max(a, 0), with derivative 0 at 0."""

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor:
        note["mask"] = mask = (a > 0).to(a.dtype)
        return a * mask

    def backward(self, d: Tensor, g: Tensor | None, note: Note) -> Tensor:
        kept: Tensor = d * note["mask"]
        return kept

    def along(self, ra: Tensor, v: Tensor, note: Note) -> Tensor:
        return self.backward(ra, None, note)

    def back_along(self, rd: Tensor, h: Tensor | None, note: Note) -> Tensor:
        return self.backward(rd, None, note)


@dataclass(frozen=True)
class Flat:
    """Flatten (channels, height, width, n) to (units, n), in the order of torch's flatten."""

    def forward(self, a: Tensor, w: Tensor, note: Note) -> Tensor:
        note["shape"] = a.shape
        return a.reshape(-1, a.shape[-1])

    def backward(self, d: Tensor, g: Tensor | None, note: Note) -> Tensor:
        return d.reshape(note["shape"])

    def along(self, ra: Tensor, v: Tensor, note: Note) -> Tensor:
        return ra.reshape(-1, ra.shape[-1])

    def back_along(self, rd: Tensor, h: Tensor | None, note: Note) -> Tensor:
        return self.backward(rd, None, note)
