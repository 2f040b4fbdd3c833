"""Second derivatives of sequential networks (convolution, ReLU, 2 x 2 max pooling, linear) without autograd.

The forward and backward passes store what the derivative along a direction needs; see `inversion_stages`. The results
are those of automatic differentiation up to rounding, in less than half its time on small convolutional networks, where
matrix products take most of the time. The images are constant along a path, so their patches are extracted once, and
derivatives by the patches are summed over the steps before they are folded back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from strategies.staleness.inversion_patches import Maxima, Patches
from strategies.staleness.inversion_room import Room
from strategies.staleness.inversion_stages import Affine, Dense, Flat, Note, Rectify, Stage
from strategies.staleness.inversion_unroll import Part, Tape

PIECE = 64
"""Images per pass through convolutions, which bounds the memory of their patches. Linear layers take any number."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some images of a batch: the first layer's patches, the sum of derivatives by them, and the shape of the images
    (with the batch dimension last)."""

    columns: Tensor
    sums: Tensor
    shape: Sequence[int]
    note: Note


@dataclass
class Chain:
    """A `Second` for one module of known stages: flattenings, the first layer, and the rest."""

    flat: bool
    head: Affine
    stages: Sequence[Stage]
    room: Room
    piece: int
    """Images at a time."""

    @classmethod
    def of(cls, module: nn.Module) -> Chain | None:
        """The chain of a module, or None if the module has other layers."""
        parts = _in_order(module) if isinstance(module, nn.Sequential) else []
        flat = bool(parts) and isinstance(_stage(parts[0], None, None, 0, Room()), Flat)
        room, at, stages = Room(), 0, list[Stage]()
        for before, part, after in zip([None, *parts], parts, [*parts[1:], None], strict=False):
            if (part is parts[0] and flat) or (isinstance(before, nn.MaxPool2d) and isinstance(part, nn.ReLU)):
                continue  # it is at the start of the chain, or part of the max pooling
            stage = _stage(part, before, after, at, room)
            if stage is None or (isinstance(stage, Affine) and stages and isinstance(stages[-1], Affine)):
                return None
            stages.append(stage)
            at += sum(p.numel() for p in part.parameters())
        if not stages or not isinstance(stages[0], Affine):
            return None
        return cls(flat, stages[0], stages[1:], room, PIECE if isinstance(stages[0].products, Patches) else sys.maxsize)

    @torch.inference_mode()
    def prepare(self, x: Tensor) -> Part:
        pieces = []
        for some in torch.split(x, self.piece):
            a, note = some.movedim(0, -1).contiguous(), Note()
            a = a.view(-1, len(some)) if self.flat else a
            columns = self.head.products.cut(a, 1.0, note)
            pieces.append(Piece(columns, self.head.products.blank(columns, note), a.shape, note))
        return x.shape, pieces

    @torch.inference_mode()
    def images(self, part: Part) -> Tensor:
        shape, pieces = part
        ends = [self.head.products.put_back(one.sums, one.shape).movedim(-1, 0).clone() for one in pieces]
        for one in pieces:
            self.room.free(one.note)
        return torch.cat(ends).reshape(shape)

    @torch.inference_mode()
    def gradient(self, w: Tensor, part: Part, shares: Tensor) -> tuple[Tensor, Tape]:
        g = torch.zeros_like(w)
        pieces = zip(part[1], torch.split(shares, self.piece), strict=True)
        return g, (w, len(shares), [self._gradient(w, one, s.t(), g, len(shares)) for one, s in pieces])

    @torch.inference_mode()
    def pull(self, tape: Tape, v: Tensor, *, deeper: bool) -> tuple[Tensor | None, Tensor]:
        w, count, tapes = tape
        h = torch.zeros_like(w) if deeper else None
        return h, torch.cat([self._pull(v, h, count, *one) for one in tapes], 1).t()

    def _gradient(self, w: Tensor, piece: Piece, s: Tensor, g: Tensor, count: int) -> tuple[Any, ...]:
        first, *notes = [Note() for _ in range(len(self.stages) + 1)]
        a = self.head.enter(piece.columns, w, first)
        for stage, note in zip(self.stages, notes, strict=True):
            a = stage.forward(a, w, note)
        p, whole = a.softmax(0), s.sum(0)
        d = (p * whole - s) / count
        for stage, note in zip(reversed(self.stages), reversed(notes), strict=True):
            d = stage.backward(d, g, note)
        self.head.weigh(d, g, first)
        return piece, p, whole, first, notes

    def _pull(
        self, v: Tensor, h: Tensor | None, count: int, piece: Piece, p: Tensor, whole: Tensor, first: Note,
        notes: Sequence[Note],
    ) -> Tensor:  # fmt: skip
        """The derivative of one piece by its label shares, (classes, n)."""
        ra = self.head.enter_along(v, first)
        for stage, note in zip(self.stages, notes, strict=True):
            ra = stage.along(ra, v, note)
        mean = (p * ra).sum(0)
        rd = p * (ra - mean) * (whole / count)
        for stage, note in zip(reversed(self.stages), reversed(notes), strict=True):
            rd = stage.back_along(rd, h, note)
        self.head.leave_along(rd, h, piece.sums, first)
        for note in (first, *notes):
            self.room.free(note)
        return (mean - ra) / count


def _in_order(module: nn.Sequential) -> list[nn.Module]:
    """The layers, with max pooling directly after its convolution: it commutes with ReLU."""
    parts = list(module)
    for i in range(len(parts) - 1):
        if isinstance(parts[i], nn.ReLU) and isinstance(parts[i + 1], nn.MaxPool2d):
            parts[i], parts[i + 1] = parts[i + 1], parts[i]
    return parts


def _stage(part: nn.Module, before: nn.Module | None, after: nn.Module | None, at: int, room: Room) -> Stage | None:
    match part:
        case nn.Linear():
            return Affine(Dense(part.out_features, part.in_features, at, _bias(part, at)))
        case nn.Conv2d(
            groups=1, dilation=(1, 1), stride=(1, 1), padding_mode="zeros", padding=(int() as ph, int() as pw)
        ):
            kernel, pooled = (part.kernel_size[0], part.kernel_size[1]), isinstance(after, nn.MaxPool2d)
            sizes = part.out_channels, part.in_channels, kernel, (ph, pw), at, _bias(part, at)
            return Affine(Patches(*sizes, whole=before is None, pooled=pooled, room=room))
        case nn.ReLU():
            return Rectify()
        case nn.Flatten(start_dim=1, end_dim=-1):
            return Flat()
        case nn.MaxPool2d(dilation=1, padding=0, ceil_mode=False) if part.kernel_size == part.stride == 2:
            return Maxima(isinstance(after, nn.ReLU), room) if isinstance(before, nn.Conv2d) else None
    return None


def _bias(part: nn.Linear | nn.Conv2d, at: int) -> int | None:
    """The position of the bias: after the weight, if there is one."""
    return at + part.weight.numel() if "bias" in dict(part.named_parameters()) else None
