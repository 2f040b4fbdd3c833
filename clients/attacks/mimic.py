"""Mimic: all attackers send a copy of one honest client's update, so that the other clients have less weight.

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
    """Mimic: sends a copy of one honest client's update.

    row: index among the honest clients in ascending order; None: the client farthest along the direction of largest
    variance.
    """

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
        # of equally distant ones, such as any two, the first: rounding must not decide
        return honest[int(torch.nonzero(extents >= (1.0 - 1e-9) * extents.max())[0])].clone()
