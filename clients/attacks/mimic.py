"""Mimicking: all attackers send what one honest client sends, so that the others count less.

sent = x_i. The client is a given row, or the one farthest along the direction in which honest updates differ most.
Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", arXiv:2006.09365, section 3
(there the direction is learned over rounds, here it is that of the combination).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clients.attacks.collusion import AbstractCollusion, Defence


@dataclass(frozen=True, kw_only=True)
class Mimic(AbstractCollusion):
    """row: index among the honest clients in ascending order; None picks the one that sticks out."""

    row: int | None = None

    def check(self) -> None:
        if self.row is not None and self.row < 0:
            raise ValueError(f"row={self.row} must be an index from 0, or null")

    def vector(self, honest: Tensor, count: int, defence: Defence) -> Tensor:
        if self.row is not None:
            return honest[self.row % len(honest)].clone()
        centred = (honest - honest.mean(0)).double()
        _, vectors = torch.linalg.eigh(centred @ centred.T)
        extents = vectors[:, -1].abs()
        # of those that stick out equally, as any two do, the first: not the one that rounding chooses
        return honest[int(torch.nonzero(extents >= (1.0 - 1e-9) * extents.max())[0])].clone()
