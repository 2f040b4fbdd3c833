"""The largest LoRA rank whose training fits into a client's declared memory.

M_0 + c(r) b + a m(r) <= M_i with c(r) trained parameters of b bytes each (16 with Adam in float32), and a bytes for
each of the m(r) activations stored for the backward pass by factors of rank r. Where clients store more rows than they
send (`pool`), the last two terms count `pool` times, with 4 more bytes per parameter for dropped rows.
Low-rank adapters: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685; ranks by client:
Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", arXiv:2401.06432.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhet.population.profile import Profile
from strategies.budgets.rank import AbstractRank, Cost


@dataclass(frozen=True)
class ByMemory(AbstractRank):
    """The largest LoRA rank that fits a client's declared memory_bytes.

    A client that declares no memory gets `max_rank`, or the rank it declares if that is lower.
    """

    def fits(self, profile: Profile, rank: int, steps: int, cost: Cost) -> bool:
        return self.in_memory(profile, rank, cost)

    def fitted(self, profile: Profile, rank: int, steps: int, cost: Cost) -> int:
        return steps
