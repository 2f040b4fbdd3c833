"""FedEx-LoRA: averaged factors, with the residual of the average added to the base weights, so that the sum is exact.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models",
arXiv:2410.09432:

    A <- sum_i p_i A_i,  B <- sum_i p_i B_i,  W <- W + s (sum_i p_i B_i A_i - B A)

The residual is the covariance of the factors and has at most rank (K - 1) r for K clients with the same start; it is
sent as factors. Ranks must be equal; `exact_warm` is for unequal ranks.

Up: r (d + k) numbers per layer. Down: r (d + k) for the averages and at most (K - 1) r (d + k) for the residual, or d k
if that is less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhet.model.flat_model import Model
from fedhet.types import Job, Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.averaged import install_pairs, zero_products
from strategies.spaces.lora.factors import Pair, compress, norm, stack
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import MEAN, WHOLE, A, B, pairs, tree_of, under
from strategies.spaces.lora.products import AbstractProducts
from strategies.spaces.lora.truncating import ROUNDING, difference
from strategies.spaces.lora.warm import as_factors, ends, factors_of


@dataclass(frozen=True)
class FedEx(AbstractProducts):
    """FedEx-LoRA: averaged factors, and the residual of the average added to the base weights.

    Hyper-parameters: see `AbstractLora`. Raises ValueError for a budget of another rank.
    """

    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        return as_factors(zero_products(self, shapes, kind))

    def adapter_products(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        return factors_of(state)

    def adapter_payload(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        if self.rank_of(job) != self.rank:
            raise ValueError(
                f"the budget gives client {job.client} rank {job.budget.rank}, not {self.rank}: factors of unequal "
                "rank have no mean; space=exact_warm is exact for them"
            )
        return as_factors(factors_of(state))

    def trained(self, version: int) -> tuple[str, ...]:
        return (A, B)

    def fill_adapters(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        install_pairs(panel, factors_of(payload))

    def adapter_update(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        return tree_of(ends(panel, scaling_on=B), {})

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        starts, products, means = factors_of(dict(before.items())), {}, {}
        for name, end in pairs(delta).items():
            start = starts[name]
            products[name] = difference(end, start)
            means[f"{MEAN}{name}.{A}"] = end.right - start.right
            means[f"{MEAN}{name}.{B}"] = end.left - start.left
        return {**tree_of(products, under(delta, WHOLE)), **means}

    def merge(self, state: Tree, delta: Tree) -> Tree:
        held, steps, means = dict(state.items()), pairs(delta), pairs(under(delta, MEAN))
        averages, residuals = {}, {}
        for name, old in factors_of(held).items():
            new = averages[name] = Pair(old.left + means[name].left, old.right + means[name].right)
            missed = stack([steps[name], old, new], [1.0, 1.0, -1.0])
            single = new.left.dtype != torch.float64
            residuals[name], _ = compress(missed, floor=ROUNDING * norm(new) if single else 0.0)
        base = ledger.advance(held, residuals, under(delta, WHOLE), smallest=True)
        return {**base, **as_factors(averages)}
