"""Stacked adapters cut to the singular values that hold most of their energy, then merged (FLoRIST).

Ramesh and Dass, "FLoRIST: Singular Value Thresholding for Efficient and Accurate Federated Fine-Tuning of Large
Language Models", arXiv:2506.09199: of the stack's product U S V^T the least q singular values stay whose squares make
up `energy` of the whole. Both sides add the cut product, so they stay equal; what was cut is lost.

Up: r_i (d + k) numbers a layer. Down: q (d + k) for each version the client missed, or d k once that is less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhet.model import Model
from fedhet.types import Job, Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.base import AbstractProducts
from strategies.spaces.lora.factors import Pair, compress
from strategies.spaces.lora.fresh import begin_fresh, bring_fresh
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import WHOLE, A, B, pairs, under


@dataclass(frozen=True)
class Florist(AbstractProducts):
    """energy: share of the squared singular values that stays, in (0, 1]. same_start: all jobs of a version draw the
    same A. The rest as for all adapters, see `AbstractLora`."""

    energy: float = 0.95
    same_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy={self.energy} must be in (0, 1]; 1.0 keeps everything")

    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        return {}

    def beside(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        return {}

    def handed(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        return {}

    def trained(self, version: int) -> tuple[str, ...]:
        return (A, B)

    def place(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        begin_fresh(self, panel, job, same=self.same_start)

    def brought(self, panel: Panel, payload: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return bring_fresh(panel)

    def accept(self, before: Tree, job: Job, delta: Tree) -> Tree:
        return delta

    def merge(self, state: Tree, delta: Tree) -> Tree:
        steps = {name: compress(pair, energy=self.energy)[0] for name, pair in pairs(delta).items()}
        return ledger.advance(dict(state.items()), steps, under(delta, WHOLE), smallest=True)
