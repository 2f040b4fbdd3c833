"""Stacked adapters cut to the singular values that hold most of their energy, then merged (FLoRIST).

Ramesh and Dass, "FLoRIST: Singular Value Thresholding for Efficient and Accurate Federated Fine-Tuning of Large
Language Models", arXiv:2506.09199: of the stack's product U S V^T the least q singular values stay whose squares make
up `energy` of the whole. Both sides add the cut product, so they stay equal; what was cut is lost.

Up: r_i (d + k) numbers a layer. Down: q (d + k) for each version the client missed, or d k once that is less.
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
    """energy: share of the squared singular values that stays, in (0, 1]. The rest: see `AbstractFresh`
    and `AbstractLora`."""

    energy: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy={self.energy} must be in (0, 1]; 1.0 keeps everything")

    def merge(self, state: Tree, delta: Tree) -> Tree:
        steps = {name: compress(pair, energy=self.energy)[0] for name, pair in pairs(delta).items()}
        return ledger.advance(dict(state.items()), steps, under(delta, WHOLE), smallest=True)
