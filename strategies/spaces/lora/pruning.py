"""HetLoRA's rank pruning: a penalty on an adapter's last rows, which are removed once their norm falls.

Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", arXiv:2401.06432. A client of
rank r trains on its loss and, with t = floor(decay * r),

    penalty * ||B[:, t:]|| * ||A[t:]||

and if that product of norms is smaller after its job than before, its rank is t from then on: the other rows are zero.
Here each layer has its own r. A row that is zero in both factors has no gradient, so it stays zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.names import A, B


class Pruner:
    """The penalty and pruning of one job on a device whose layers have the ranks `ranks`."""

    def __init__(self, panel: Panel, ranks: Mapping[str, int], decay: float, penalty: float, least: int) -> None:
        self.ranks, self.penalty = dict(ranks), penalty
        self.shorter = {name: max(least, math.floor(decay * r)) for name, r in ranks.items()}
        self._panel = panel
        self._before = {name: self._product(name) for name in ranks}
        self._hooks: list[RemovableHandle] = []
        if penalty:
            self._hooks = [
                factor.register_hook(partial(self._pressed, name, letter))  # type: ignore[no-untyped-call]
                for name, pair in panel.factors.items()
                for letter, factor in pair.items()
            ]

    def step(self) -> None:
        """Do nothing before a forward pass."""

    def close(self) -> None:
        """The end of the job."""
        for hook in self._hooks:
            hook.remove()

    def pruned(self) -> dict[str, int]:
        """The ranks after the job."""
        return {n: self.shorter[n] if self._product(n) < self._before[n] else r for n, r in self.ranks.items()}

    def tail(self, name: str, letter: str) -> Tensor:
        """The rows of A, or columns of B, that are candidates for removal; a view."""
        factor, at = self._panel.factors[name][letter].data, self.shorter[name]
        size = max(0, self.ranks[name] - at)
        return factor.narrow(0 if letter == A else 1, at if size else 0, size)

    def _product(self, name: str) -> float:
        return float(self.tail(name, A).norm()) * float(self.tail(name, B).norm())

    def _pressed(self, name: str, letter: str, gradient: Tensor) -> Tensor:
        """A factor's gradient plus that of the penalty, which is zero for a norm of zero."""
        own, other = self.tail(name, letter), self.tail(name, B if letter == A else A)
        length = own.norm()
        if not length:
            return gradient
        at, result = self.shorter[name], gradient.clone()
        result.narrow(0 if letter == A else 1, at, own.shape[0 if letter == A else 1]).add_(
            own * (self.penalty * other.norm() / length)
        )
        return result


def shortened(pair: Pair, rank: int) -> Pair:
    """The product's first `rank` columns and rows, the others zero."""
    left, right = pair.left.clone(), pair.right.clone()
    left[:, rank:] = 0.0
    right[rank:] = 0.0
    return Pair(left, right)
