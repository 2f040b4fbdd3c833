"""Adapters of any rank whose products are summed exactly by stacking, and merged into the base weights (FLoRA).

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
arXiv:2409.05976:

    W <- W + sum_i c_i s_i B_i A_i = W + [B_1 ... B_n] [c_1 s_1 A_1; ...; c_n s_n A_n]

All scalars are on A, once; the receiver's scaling is 1; every job starts from a fresh adapter that adds nothing (A
random, B zero), so nothing but W lives on. Up: r_i (d + k) numbers a layer. Down: R (d + k) with R = sum_i r_i for each
version the client missed, or d k once that is less, or all weights to a client whose version is not known.

What is sent is decided per client from the version it is known to hold (`Job.held`): a client that missed versions gets
their stacks, too, and one that failed gets everything. The client keeps the merged weights between its jobs and refuses
to train if their hash is not the server's, so the two never drift apart unseen.
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
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.fresh import begin_fresh, bring_fresh
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import WHOLE, A, B, pairs, under


@dataclass(frozen=True)
class StackedLora(AbstractProducts):
    """send: "auto" sends, layer by layer, a stack, its lossless compressed form or the merged matrix, whichever has
    fewer bytes; "stack" always the stack. same_start: all jobs of a version draw the same A. The rest as for all
    adapters, see `AbstractLora`."""

    send: str = "auto"
    same_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.send not in ("auto", "stack"):
            raise ValueError(f"send={self.send!r} must be auto or stack")

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
        whole = under(delta, WHOLE)
        return ledger.advance(dict(state.items()), pairs(delta), whole, smallest=self.send == "auto")
