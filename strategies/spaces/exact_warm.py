"""Adapters of any rank that continue between jobs, with exact sums: the rest of the global update is in the base.

T is the sum of all updates so far, W0 + T the base weights of the server and of every client. A device's trainable pair
starts as the best approximation of T of its rank, which is subtracted from the frozen weights:

    device    W - B_i A_i (frozen) + B_i A_i (trained),    T <- T + sum_i c_i (end_i - start_i)

so every client starts from the model W0 + T whatever its rank, sums of products are exact, and adapters are not
reinitialised. It extends FedEx-LoRA (Singhal et al., arXiv:2410.09432), which needs equal ranks, by the decomposition
of stacked factors of FLoRIST (Ramesh and Dass, arXiv:2506.09199).

Up: r_i (d + k) numbers per layer. Down: q (d + k) with the rank q of the last step, or d k if that is less; and the
r_i (d + k) of the trainable pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhet.model.flat_model import Model
from fedhet.types import Job, Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.base import hosted
from strategies.spaces.lora.factors import Pair, added, compress
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape, parameter
from strategies.spaces.lora.names import ADAPTED, WHOLE, A, B, pairs, tree_of, under
from strategies.spaces.lora.products import AbstractProducts
from strategies.spaces.lora.truncating import difference, empty, fill_truncated, final_products, starts_of, summed
from strategies.spaces.lora.warm import as_factors, factors_of, reversed_sign


@dataclass(frozen=True)
class ExactWarm(AbstractProducts):
    """LoRA adapters of any rank that continue between jobs, with exact sums of products.

    tracked_rank: largest rank of T's factors on the server. It affects the choice of initial adapters only; sums are
    exact. None: up to min(d, k), which is costly for large layers; a few times `rank` is enough. Others: see
    `AbstractLora`. An adaptive local optimizer should reset its moments in every job, as the basis changes. Raises
    ValueError for tracked_rank below rank.
    """

    tracked_rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tracked_rank is not None and self.tracked_rank < self.rank:
            raise ValueError(f"tracked_rank={self.tracked_rank} is below rank={self.rank}: starts would be cut short")

    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        return as_factors(empty(shapes, kind))

    def adapter_products(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        return {}

    def adapter_payload(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        return as_factors(starts_of(self, state, job))

    def trained(self, version: int) -> tuple[str, ...]:
        return (A, B)

    def fill_adapters(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        host, starts = hosted(model), factors_of(payload)
        frozen = {}
        for name, start in starts.items():
            weight = parameter(name)
            frozen[weight] = added(host.held[ADAPTED + weight], reversed_sign(start))
        host.overwrite(frozen)
        fill_truncated(self, panel, starts, job)

    def adapter_update(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        return final_products(panel)

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        starts = starts_of(self, dict(before.items()), job)
        return tree_of({n: difference(end, starts[n]) for n, end in pairs(delta).items()}, under(delta, WHOLE))

    def merge(self, state: Tree, delta: Tree) -> Tree:
        held = dict(state.items())
        steps = {name: compress(pair)[0] for name, pair in pairs(delta).items()}
        base = ledger.advance(held, steps, under(delta, WHOLE), smallest=True)
        return {**base, **as_factors(summed(factors_of(held), steps, self.tracked_rank))}
