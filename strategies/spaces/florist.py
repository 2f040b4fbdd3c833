"""FLoRIST: stacked adapters, truncated to the singular values with most of the energy and merged into the base.

Ramesh and Dass, "FLoRIST: Singular Value Thresholding for Efficient and Accurate Federated Fine-Tuning of Large
Language Models", arXiv:2506.09199: of the stack's product U S V^T the smallest number q of leading singular values is
used whose squares sum to the share `energy` of the total. Server and clients add the same truncated product.

Up: r_i (d + k) numbers per layer. Down: q (d + k) for each version the client missed, or d k if that is less.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhet.types import Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.factors import compress
from strategies.spaces.lora.fresh import AbstractFresh
from strategies.spaces.lora.names import WHOLE, pairs, under


@dataclass(frozen=True)
class Florist(AbstractFresh):
    """FLoRIST: stacked adapters, truncated by SVD and merged into the base weights.

    energy: share of the sum of squared singular values to retain, in (0, 1]. Others: see `AbstractFresh`.
    """

    energy: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy={self.energy} must be in (0, 1]; 1.0 keeps everything")

    def merge(self, state: Tree, delta: Tree) -> Tree:
        steps = {name: compress(pair, energy=self.energy)[0] for name, pair in pairs(delta).items()}
        return ledger.advance(dict(state.items()), steps, under(delta, WHOLE), smallest=True)
