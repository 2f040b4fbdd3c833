"""FLoRA: adapters of any rank, summed exactly by stacking and merged into the base weights.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
arXiv:2409.05976:

    W <- W + sum_i c_i s_i B_i A_i = W + [B_1 ... B_n] [c_1 s_1 A_1; ...; c_n s_n A_n]

All scalars are folded into A; the receiver's scaling is 1; every job starts from a new adapter (A random, B zero), so
only W persists. Up: r_i (d + k) numbers per layer. Down: R (d + k) with R = sum_i r_i for each version the client
missed, or d k if that is less, or all weights to a client whose version is not known.

The payload depends on the version that the client is known to have (`Job.held`): a client that missed versions gets
their stacks as well, and one that failed gets all weights. The client stores the merged weights between its jobs and
refuses to train if their hash differs from the server's.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhet.types import Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.fresh import AbstractFresh
from strategies.spaces.lora.names import WHOLE, pairs, under


@dataclass(frozen=True)
class StackedLora(AbstractFresh):
    """FLoRA: adapters of any rank, summed exactly by stacking and merged into the base weights.

    send: "auto" sends, per layer, the smallest of the stack, its lossless compressed form and the merged matrix;
    "stack" always the stack. Others: see `AbstractFresh` and `AbstractLora`.
    """

    send: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.send not in ("auto", "stack"):
            raise ValueError(f"send={self.send!r} must be auto or stack")

    def merge(self, state: Tree, delta: Tree) -> Tree:
        whole = under(delta, WHOLE)
        return ledger.advance(dict(state.items()), pairs(delta), whole, smallest=self.send == "auto")
