"""The largest LoRA rank whose training fits into a client's declared memory.

M_0 + c(r) b + a m(r) <= M_i with c(r) trained numbers of b bytes each (16 with Adam in float32), and a bytes for each
of the m(r) values that factors of rank r keep for the backward pass; pool times as much where clients hold more rows
than they send, with 4 bytes a number on top for what is set aside. Low-rank adapters: Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models", arXiv:2106.09685; ranks by client: Cho et al., "Heterogeneous LoRA for Federated
Fine-tuning of On-Device Foundation Models", arXiv:2401.06432.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhet.population.profile import Profile
from strategies.budgets.rank import AbstractRank, Cost


@dataclass(frozen=True)
class ByMemory(AbstractRank):
    """Ranks by memory alone; a client that declares none gets `max_rank` or the rank it declares."""

    def fits(self, profile: Profile, rank: int, steps: int, cost: Cost) -> bool:
        return self.in_memory(profile, rank, cost)

    def fitted(self, profile: Profile, rank: int, steps: int, cost: Cost) -> int:
        return steps
