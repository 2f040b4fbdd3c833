"""Second derivatives of plain chains (convolution, rectifier, 2 x 2 maximum, linear) without a graph.

The chain's own forward and backward keep what its derivative along a direction needs; see `inversion_stages`. The same
numbers as automatic differentiation up to rounding, in less than half its time on small networks, where nearly all of
it goes into matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from strategies.staleness.inversion_stages import Affine, Flat, Maxima, Note, Rectify, Stage
from strategies.staleness.inversion_unroll import Tape


@dataclass
class Chain:
    """A `Second` for one module whose stages are known. The first layer's patches are cut once per input."""

    stages: Sequence[Stage]
    piece: int = 64
    """Samples at a time, so that what is kept of a step does not grow with the number of images."""
    _cut: tuple[Tensor | None, list[tuple[Tensor, Tensor | None]]] = field(default=(None, []))

    @classmethod
    def of(cls, module: nn.Module) -> Chain | None:
        """The chain a module is, or None if it is none that this file knows."""
        if not isinstance(module, nn.Sequential):
            return None
        stages: list[Stage] = []
        at = 0
        for part in module:
            stage = _stage(part, at)
            if stage is None:
                return None
            stages.append(stage)
            at += sum(p.numel() for p in part.parameters())
        for i in range(len(stages) - 1):  # a maximum of rectified values is a rectified maximum, a quarter of the work
            if isinstance(stages[i], Rectify) and isinstance(stages[i + 1], Maxima):
                stages[i], stages[i + 1] = stages[i + 1], stages[i]
        return cls(stages)

    def gradient(self, w: Tensor, x: Tensor, shares: Tensor) -> tuple[Tensor, Tape]:
        g = torch.zeros_like(w)
        pieces = zip(self._cut_up(x), torch.split(shares, self.piece), strict=True)
        tapes = [self._gradient(w, a, cut, s.t(), g, len(x)) for (a, cut), s in pieces]
        return g, (w, x.shape, tapes)

    def pull(self, tape: Tape, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, shape, tapes = tape
        h = torch.zeros_like(w)
        ends = [self._pull(w, v, h, shape[0], *one) for one in tapes]
        by_x, by_shares = torch.cat([x for x, _ in ends], -1), torch.cat([s for _, s in ends], -1)
        return h, by_x.movedim(-1, 0).reshape(shape), by_shares.t()

    def _gradient(self, w: Tensor, a: Tensor, cut: Tensor | None, s: Tensor, g: Tensor, count: int) -> tuple[Any, ...]:
        notes: list[Note] = [{} for _ in self.stages]
        if cut is not None:
            notes[0]["columns"] = cut
        for stage, note in zip(self.stages, notes, strict=True):
            a = stage.forward(a, w, note)
        p, whole = a.softmax(0), s.sum(0)
        d = (p * whole - s) / count
        first = self._first
        for i in reversed(range(first, len(self.stages))):
            d = self.stages[i].backward(d, w, g, notes[i], deeper=i > first)
        return p, whole, notes

    def _pull(self, w: Tensor, v: Tensor, h: Tensor, count: int, p: Tensor, whole: Tensor, notes: list[Note]) -> Any:
        """The derivatives of one piece by its images and label shares, (*input_shape, n) and (classes, n)."""
        ra: Tensor | None = None
        for stage, note in zip(self.stages, notes, strict=True):
            ra = stage.along(ra, w, v, note)
        assert ra is not None
        mean = (p * ra).sum(0)
        rd = p * (ra - mean) * (whole / count)
        for stage, note in zip(reversed(self.stages), reversed(notes), strict=True):
            rd = stage.back_along(rd, w, v, h, note)
        return rd, (mean - ra) / count

    @property
    def _first(self) -> int:
        """The first stage with parameters: nothing before it needs a gradient of the path."""
        return next(i for i, stage in enumerate(self.stages) if isinstance(stage, Affine))

    def _cut_up(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """The input piece by piece with the first layer's patches; all steps of a path ask for the same input."""
        if self._cut[0] is not x:
            first = self.stages[0]
            conv = first if isinstance(first, Affine) and first.kernel is not None else None
            pieces = [part.movedim(0, -1).contiguous() for part in torch.split(x, self.piece)]
            for _, old in self._cut[1]:
                if conv and old is not None:
                    conv.room.give(old)
            self._cut = (x, [(a, conv.unfold(a) if conv else None) for a in pieces])
        return self._cut[1]


def _stage(part: nn.Module, at: int) -> Stage | None:
    match part:
        case nn.Linear():
            return Affine(part.out_features, part.in_features, at, _bias(part, at))
        case nn.Conv2d(groups=1, dilation=(1, 1), padding_mode="zeros", padding=(int() as ph, int() as pw)):
            kernel, stride = (part.kernel_size[0], part.kernel_size[1]), (part.stride[0], part.stride[1])
            return Affine(part.out_channels, part.weight[0].numel(), at, _bias(part, at), kernel, stride, (ph, pw))
        case nn.ReLU():
            return Rectify()
        case nn.Flatten(start_dim=1, end_dim=-1):
            return Flat()
        case nn.MaxPool2d(dilation=1, padding=0, ceil_mode=False) if part.kernel_size == part.stride == 2:
            return Maxima()
    return None


def _bias(part: nn.Linear | nn.Conv2d, at: int) -> int | None:
    """Where the bias lies: behind the weight, if there is one."""
    return at + part.weight.numel() if "bias" in dict(part.named_parameters()) else None
