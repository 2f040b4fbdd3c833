"""Several perceptrons of one shape trained side by side: one kernel call a layer for all, with the bits of each alone.

Row c of `flat`, (count, parameters), is the whole model of client c. Where the steps of one model are compiled, so are
those of all rows, one after the other in one call. Otherwise the products are those of `fedhet.native.mlp_gradient`, as
batched matrix products. Most sizes are computed slice by slice like single products, some are not (one sample, very
narrow layers); so a size is used only after it gave the bits of each alone in a trial, and no result depends on which
clients are trained together. Small models gain most: their steps cost more in calls than in arithmetic.

Between `begin` and `finish` rows start as vectors that lie elsewhere and leave their differences to them elsewhere.
Compiled steps read and write those directly, and the rows are never filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedhet.native.mlp_gradient import IGNORE, MEAN, NLL, RELU_BACKWARD, SOFTMAX_BACKWARD, Perceptron
from fedhet.native.mlp_sgd import IN_PLACE, Ends

if TYPE_CHECKING:
    from fedhet.types import Batch, IndexedBatches

TRIAL_RATE = 0.05
ROWS = 48
"""Rows compared in a trial. Where batched products differ at all they do so in a third of the rows or more."""


class BatchedPerceptron:
    """Memory for `count` perceptrons like `one`, and their steps; see `fedhet.native.BatchedStepper`.

    `alone` is the vector of the parameters of `one`: a trial steps them, and puts them back.
    """

    def __init__(self, one: Perceptron, alone: Tensor, count: int) -> None:
        self._one, self._alone, self._shapes = one, alone, one.shapes
        self.flat = torch.zeros(count, one.size, dtype=one.dtype)
        self._weights, self._biases = _views(self.flat, one.shapes)
        self._across = [w.transpose(1, 2) for w in self._weights]
        self._agrees: dict[int, bool] = {}
        self._ends, self._fresh, self._done = IN_PLACE, False, False

    @classmethod
    def of(cls, one: Perceptron, count: int) -> BatchedPerceptron | None:
        """None if the parameters do not lie in order as one vector."""
        return None if one.flat is None else cls(one, one.flat, count)

    def begin(self, starts: Sequence[Tensor], deltas: Sequence[Tensor]) -> None:
        """The rows are these vectors from now on, which are only read; `finish` makes `deltas` what rows moved by."""
        self._ends, self._fresh, self._done = Ends(starts, deltas, starts), True, False

    def finish(self) -> None:
        """Write the deltas, if the last steps did not; the rows hold nothing afterwards."""
        if not self._done:
            self._fill()
            for row, start, delta in zip(self.flat, self._ends.since, self._ends.deltas, strict=True):
                torch.sub(row, start, out=delta)
        self._ends, self._fresh, self._done = IN_PLACE, False, False

    def _fill(self) -> None:
        if self._fresh:
            for row, start in zip(self.flat, self._ends.begin, strict=True):
                row.copy_(start)
            self._fresh = False

    def agrees(self, n: int) -> bool:
        """Whether batches of n samples give each row the bits it gets alone; tried once a size, on random numbers.

        The trial steps rows and the parameters of the one, and puts both back.
        """
        if self._one.compiles(n):
            return True  # it is the same code
        if n not in self._agrees:
            self._agrees[n] = self._try(n)
        return self._agrees[n]

    def _try(self, n: int) -> bool:
        kept, before = self.flat.clone(), self._alone.clone()
        lots, count = torch.Generator().manual_seed(n), len(self.flat)
        same = all(self._like_alone(n, lots) for _ in range(-(-ROWS // count)))
        self.flat.copy_(kept)
        self._alone.copy_(before)
        return same

    def _like_alone(self, n: int, lots: torch.Generator) -> bool:
        """Whether all rows get the bits they get alone, for one draw of random numbers."""
        self.flat.normal_(generator=lots).mul_(0.1)
        x = torch.randn(len(self.flat), n, self._shapes[0][1], generator=lots, dtype=self.flat.dtype)
        y = torch.randint(self._shapes[-1][0], (len(self.flat), n), generator=lots)
        before = self.flat.clone()
        losses = self.descend(x, y, TRIAL_RATE)
        for start, row, inputs, targets, loss in zip(before, self.flat, x, y, losses, strict=True):
            self._alone.copy_(start)
            alone = self._one.descend(inputs, targets, TRIAL_RATE)
            if not (torch.equal(alone, loss) and torch.equal(self._alone, row)):
                return False
        return True

    def descend_all(self, batches: Sequence[Sequence[Batch]], rate: float, *, last: bool = False) -> Tensor | None:
        """Steps of plain gradient descent of every row on its batches; the losses before each, (count, steps).

        None if rows differ in the sizes of their batches, or a size is not for here; rows may have moved then. `last`
        says that `finish` comes next.
        """
        losses = self._one.steps(self.flat, batches, rate, self._now(last))
        if losses is not None:
            self._fresh, self._done = False, last
            return losses
        self._fill()
        told = []
        for pairs in zip(*batches, strict=True):
            if len({(x.shape, y.shape) for x, y in pairs}) > 1:
                return None
            x, y = (torch.stack(part) for part in zip(*pairs, strict=True))
            if x.dtype != self.flat.dtype or y.dim() != 2 or not self.agrees(y.shape[1]):
                return None
            told.append(self.descend(x, y, rate))
        return torch.stack(told, 1)

    def pick(self, picked: Sequence[IndexedBatches], rate: float) -> Tensor | None:
        """All steps of every row, `finish` comes next; the losses, (count, steps). None, with nothing done, if only
        batches are for here."""
        losses = self._one.pick(self.flat, picked, rate, self._now(last=True))
        if losses is not None:
            self._fresh, self._done = False, True
        return losses

    def _now(self, last: bool) -> Ends:
        """What the next steps begin with, and where they leave what comes of them."""
        begin, deltas, since = self._ends
        return Ends(begin if self._fresh else (), deltas if last else (), since if last else ())

    @torch.no_grad()
    def descend(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        """One step of every row on its inputs (count, n, ...) and classes (count, n); the losses before it."""
        losses = self._one.steps(self.flat, [[pair] for pair in zip(x, y, strict=True)], rate)
        if losses is not None:
            return losses[:, 0]
        h, last = x.flatten(2), len(self._weights) - 1
        held = [h]
        for i in range(last):
            h = torch.baddbmm(self._biases[i], h, self._across[i]).relu_()
            held.append(h)
        logs = torch.log_softmax(torch.baddbmm(self._biases[last], h, self._across[last]), 2)
        losses = torch.stack([NLL(row, t, None, MEAN, IGNORE)[0] for row, t in zip(logs, y, strict=True)])
        g = torch.zeros_like(logs).scatter_(2, y.unsqueeze(2), float(-torch.ones((), dtype=logs.dtype) / y.shape[1]))
        g = SOFTMAX_BACKWARD(g, logs, 2, logs.dtype)
        for i in range(last, -1, -1):
            below = RELU_BACKWARD(torch.bmm(g, self._weights[i]), held[i], 0) if i else g
            self._weights[i].baddbmm_(g.transpose(1, 2), held[i], alpha=-rate)
            self._biases[i].add_(torch.sum(g, 1, keepdim=True), alpha=-rate)
            g = below
        return losses


def _views(rows: Tensor, shapes: tuple[tuple[int, int], ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights (count, out, in) and biases (count, 1, out) of all layers, as views of the rows."""
    weights, biases, at = [], [], 0
    for out, into in shapes:
        weights.append(rows[:, at : at + out * into].view(-1, out, into))
        at += out * into
        biases.append(rows[:, at : at + out].unsqueeze(1))
        at += out
    return weights, biases
