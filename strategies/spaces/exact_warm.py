"""Warm adapters of any rank with exact sums: the best part of the global update is trained, the rest is in the base.

T is the sum of all updates so far, W0 + T the base weights of the server and of every client. A device's trainable pair
starts as the best approximation of T its rank can hold, and that part is taken out of its frozen weights:

    device    W - B_i A_i (frozen) + B_i A_i (trained),    T <- T + sum_i c_i (end_i - start_i)

so the model a client starts from is W0 + T whatever its rank, sums of products are exact, and nobody starts anew. It
extends FedEx-LoRA (Singhal et al., arXiv:2410.09432), which needs equal ranks, by the decomposition of stacked factors
of FLoRIST (Ramesh and Dass, arXiv:2506.09199).

Up: r_i (d + k) numbers a layer. Down: q (d + k), q being the rank of the last step, or d k once that is less; and the
r_i (d + k) of the trainable pair, which a client could only find itself by keeping T and decomposing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhet.model.flat_model import Model
from fedhet.types import Job, Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.base import AbstractProducts, hosted
from strategies.spaces.lora.factors import Pair, added, compress
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape, parameter
from strategies.spaces.lora.names import ADAPTED, WHOLE, A, B, pairs, tree_of, under
from strategies.spaces.lora.truncating import begin_cut, bring_ends, difference, empty, starts_of, summed
from strategies.spaces.lora.warm import as_factors, factors_of, reversed_sign


@dataclass(frozen=True)
class ExactWarm(AbstractProducts):
    """tracked_rank: the most of T that the server keeps as factors, which decides how well starts are chosen and
    nothing else: sums stay exact. None keeps all, up to min(d, k), which is costly for large layers; a few times `rank`
    is enough. The rest as for all adapters, see `AbstractLora`. Adaptive local work should start its moments anew in
    every job: the basis turns. Raises ValueError for tracked_rank below rank."""

    tracked_rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tracked_rank is not None and self.tracked_rank < self.rank:
            raise ValueError(f"tracked_rank={self.tracked_rank} is below rank={self.rank}: starts would be cut short")

    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        return as_factors(empty(shapes, kind))

    def beside(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        return {}

    def handed(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        return as_factors(starts_of(self, state, job))

    def trained(self, version: int) -> tuple[str, ...]:
        return (A, B)

    def place(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        host, starts = hosted(model), factors_of(payload)
        frozen = {}
        for name, start in starts.items():
            weight = parameter(name)
            frozen[weight] = added(host.held[ADAPTED + weight], reversed_sign(start))
        host.overwrite(frozen)
        begin_cut(self, panel, starts, job)

    def brought(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        return bring_ends(panel)

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        starts = starts_of(self, dict(before.items()), job)
        return tree_of({n: difference(end, starts[n]) for n, end in pairs(delta).items()}, under(delta, WHOLE))

    def merge(self, state: Tree, delta: Tree) -> Tree:
        held = dict(state.items())
        steps = {name: compress(pair)[0] for name, pair in pairs(delta).items()}
        base = ledger.advance(held, steps, under(delta, WHOLE), smallest=True)
        return {**base, **as_factors(summed(factors_of(held), steps, self.tracked_rank))}
