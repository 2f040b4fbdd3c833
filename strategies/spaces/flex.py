"""FlexLoRA: every client starts from the best approximation, of its rank, of the averaged product of adapters.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources",
arXiv:2402.11505: T <- sum_i p_i s_i B_i A_i, exactly; U S V^T = T; client i gets U_r S_r^(1/2) and S_r^(1/2) V_r^T. The
singular value decomposition is that of the stacked factors, so T is never formed. Both factors get the square root of
S, so that neither takes larger steps. The evaluated model is W + T, not truncated.

T is the average of the clients' final products, so a direction that only some clients have is scaled down by their
weight in every version; target "increment" adds the mean of end - start instead.

Up and down: r_i (d + k) numbers per layer, after the base weights in the first payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.model.flat_model import Model
from fedhet.types import Job, Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import WHOLE, A, B, pairs, tree_of, under
from strategies.spaces.lora.products import AbstractProducts
from strategies.spaces.lora.truncating import difference, empty, fill_truncated, final_products, starts_of, summed
from strategies.spaces.lora.warm import as_factors, factors_of


@dataclass(frozen=True)
class Flex(AbstractProducts):
    """FlexLoRA: products are averaged, and truncated by SVD to each client's rank.

    target: "absolute" as published, or "increment". Others: see `AbstractLora`.
    """

    target: str = "absolute"
    moves: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in ("absolute", "increment"):
            raise ValueError(f"target={self.target!r} must be absolute or increment")

    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        return as_factors(empty(shapes, kind))

    def adapter_products(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        return factors_of(state)

    def adapter_payload(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        return as_factors(starts_of(self, state, job))

    def trained(self, version: int) -> tuple[str, ...]:
        return (A, B)

    def fill_adapters(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        fill_truncated(self, panel, factors_of(payload), job)

    def adapter_update(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        return final_products(panel)

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        held = dict(before.items())
        starts = factors_of(held) if self.target == "absolute" else starts_of(self, held, job)
        return tree_of({n: difference(end, starts[n]) for n, end in pairs(delta).items()}, under(delta, WHOLE))

    def merge(self, state: Tree, delta: Tree) -> Tree:
        held = dict(state.items())
        base = ledger.advance(held, {}, under(delta, WHOLE), smallest=False)
        return {**base, **as_factors(summed(factors_of(held), pairs(delta)))}
