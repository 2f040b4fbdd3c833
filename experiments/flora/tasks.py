"""What the study's clients hold and may do: shifted digits, and a fleet whose clients declare a largest rank each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clients.data.dataset import Dataset
from clients.data.digits import Digits
from fedhet.roster import Clients
from fedhet.streams import stream


@dataclass(frozen=True)
class ShiftedDigits:
    """The digits; with `shift` turned by a quarter and inverted. A fifth of the training images is held back: with
    `validation` it is the test set, otherwise nobody sees it."""

    shift: bool = True
    validation: bool = False

    def load(self) -> Dataset:
        whole = Digits().load()
        order = torch.from_numpy(stream(0, "held back").permutation(len(whole.x_train)))
        cut = len(order) // 5
        x, y = whole.x_train[order[cut:]], whole.y_train[order[cut:]]
        u, v = (whole.x_test, whole.y_test)
        if self.validation:
            u, v = whole.x_train[order[:cut]], whole.y_train[order[:cut]]
        if self.shift:
            x, u = (1.0 - torch.rot90(part, 1, (2, 3)).contiguous() for part in (x, u))
        name = f"{'shifted' if self.shift else 'upright'} digits"
        return replace(whole, name=name, x_train=x, y_train=y, x_test=u, y_test=v)


@dataclass(frozen=True)
class Ranked:
    """Equally fast clients, one for each rank."""

    ranks: Sequence[int] = (4,)

    @property
    def clients(self) -> int:
        return len(self.ranks)

    def build(self, seed: int) -> Clients:
        return Clients.from_columns(len(self.ranks), {"sec_per_step": 0.1, "max_rank": np.array(self.ranks)})
