"""The inversion loss of reconstructed data, and its gradients by differentiation through the unrolled training path.

    loss(X, Z) = sum_k mask_k |d_k - target_k| / sum_k mask_k |target_k|,   d = LOCAL(w_0; X, softmax(Z)) - w_0

The path w_{k+1} = w_k - lr (g_k + decay w_k + mu (w_k - w_0)) is computed once; its adjoint, backwards from the last
step,

    v <- v - lr (H_k v + (decay + mu) v),    dX <- dX - lr d<g_k, v>/dX,    dS <- dS - lr d<g_k, v>/dS

starts at v = dloss/dd. One step back is one derivative of <g_k, v>, by a `Second`.
arXiv:2309.13536, the inversion objective; soft labels are free logits, optimised together with the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from fedhet.model.flat_model import Model
from fedhet.numerics.tree import FlatTree
from strategies.staleness.inversion_local import Path, soft_cross_entropy

Part = Any
"""A batch of images as a `Second` prepares it, once for all steps on them."""

Tape = Any
"""The values of a step that a `Second` stores for its derivative."""


class Second(Protocol):
    """Gradients of the mean loss at w (parameters as one vector), and derivatives of those gradients."""

    def prepare(self, x: Tensor) -> Part:
        """Prepare a batch of images, (n, *input_shape)."""
        ...

    def gradient(self, w: Tensor, part: Part, shares: Tensor) -> tuple[Tensor, Tape]:
        """g(w; x, shares) and the tape of this step."""
        ...

    def pull(self, tape: Tape, v: Tensor, *, deeper: bool) -> tuple[Tensor | None, Tensor]:
        """The derivatives of <g, v> by w, None unless there are `deeper` steps, and by shares. That by the images is
        summed in the part."""
        ...

    def images(self, part: Part) -> Tensor:
        """The summed derivative by the images, (n, *input_shape). The part is invalid afterwards."""
        ...


@dataclass(frozen=True)
class Autograd:
    """A `Second` for any module, by automatic differentiation of its gradient."""

    model: Model

    def prepare(self, x: Tensor) -> Part:
        return x, torch.zeros_like(x)

    def gradient(self, w: Tensor, part: Part, shares: Tensor) -> tuple[Tensor, Tape]:
        x, by_x = part
        leaves = [t.detach().requires_grad_() for t in (w, x, shares)]
        params = dict(FlatTree(self.model.schema, leaves[0]))
        loss = soft_cross_entropy(functional_call(self.model.module, params, (leaves[1],)), leaves[2])
        (g,) = torch.autograd.grad(loss, leaves[:1], create_graph=True)
        return g.detach(), (leaves, g, by_x)

    def pull(self, tape: Tape, v: Tensor, *, deeper: bool) -> tuple[Tensor | None, Tensor]:
        leaves, g, by_x = tape
        *by_w, dx, by_shares = torch.autograd.grad(g, leaves if deeper else leaves[1:], v)
        by_x += dx
        return (by_w[0] if deeper else None), by_shares

    def images(self, part: Part) -> Tensor:
        by_x: Tensor = part[1]
        return by_x


@dataclass(frozen=True)
class Objective:
    """The loss of one inversion. `mask` is None for all coordinates; `metric` is "l1" or "l2" (squares)."""

    second: Second
    start: Tensor
    target: Tensor
    path: Path
    mask: Tensor | None = None
    metric: str = "l1"

    def __call__(self, x: Tensor, logits: Tensor) -> tuple[float, Tensor, Tensor]:
        """Loss relative to a zero displacement, and its gradients by the images and by the label logits."""
        shares = logits.softmax(-1)
        batches = [(self.second.prepare(x[at]), shares[at]) for at in self.path.parts]
        w, tapes = self._forward(batches)
        loss, v = self._distance(w - self.start)
        by_shares = torch.zeros_like(shares)
        rate, extra = self.path.rate, self.path.decay + self.path.pull
        for k in reversed(range(self.path.steps)):
            hv, ds = self.second.pull(tapes.pop(), v, deeper=k > 0)
            by_shares[self.path.part(k)].add_(ds, alpha=-rate)
            if hv is not None:
                v = (v * (1.0 - rate * extra)).add_(hv, alpha=-rate)
        by_x = torch.cat([self.second.images(part) for part, _ in batches]).mul_(-rate)
        by_logits = shares * (by_shares - (by_shares * shares).sum(-1, keepdim=True))
        return loss, by_x, by_logits

    def _forward(self, batches: Sequence[tuple[Part, Tensor]]) -> tuple[Tensor, list[Tape]]:
        """The final parameters of the path, and the tapes of its steps."""
        w, rate, tapes = self.start, self.path.rate, list[Tape]()
        for k in range(self.path.steps):
            g, tape = self.second.gradient(w, *batches[k % len(batches)])
            tapes.append(tape)
            following = w.add(g, alpha=-rate)
            if self.path.decay:
                following.add_(w, alpha=-rate * self.path.decay)
            if self.path.pull:
                following.add_(w - self.start, alpha=-rate * self.path.pull)
            w = following
        return w, tapes

    def _distance(self, d: Tensor) -> tuple[float, Tensor]:
        """The loss of a displacement and its derivative."""
        diff, size = d - self.target, self.target
        if self.mask is not None:
            diff, size = diff * self.mask, size * self.mask
        if self.metric == "l1":
            whole = float(size.abs().sum(dtype=torch.float64))
            return float(diff.abs().sum(dtype=torch.float64)) / whole, diff.sign() / whole
        whole = float(size.double().square().sum())
        return float(diff.double().square().sum()) / whole, diff * (2.0 / whole)


def largest(target: Tensor, share: float) -> Tensor | None:
    """A mask of the ceil(share * n) coordinates of largest magnitude, ties to the lower index; None if that is all."""
    count = math.ceil(share * target.numel())
    if count >= target.numel():
        return None
    order = torch.sort(target.abs(), descending=True, stable=True).indices
    mask = torch.zeros_like(target)
    mask[order[:count]] = 1.0
    return mask
