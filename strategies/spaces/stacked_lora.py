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

from dataclasses import dataclass

from fedhet.types import Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.fresh import AbstractFresh
from strategies.spaces.lora.names import WHOLE, pairs, under


@dataclass(frozen=True)
class StackedLora(AbstractFresh):
    """send: "auto" sends, layer by layer, a stack, its lossless compressed form or the merged matrix, whichever has
    fewer bytes; "stack" always the stack. The rest: see `AbstractFresh` and `AbstractLora`."""

    send: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.send not in ("auto", "stack"):
            raise ValueError(f"send={self.send!r} must be auto or stack")

    def merge(self, state: Tree, delta: Tree) -> Tree:
        whole = under(delta, WHOLE)
        return ledger.advance(dict(state.items()), pairs(delta), whole, smallest=self.send == "auto")
