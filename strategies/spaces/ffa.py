"""FFA-LoRA: a fixed A shared by all clients; B is trained and averaged, which is exact.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", arXiv:2403.12313:

    sum_i p_i s B_i A = s (sum_i p_i B_i) A

A is drawn from the seed on both sides and never sent. With unequal ranks client i trains the first r_i columns of B
with the first r_i rows of A, and the increments of B are padded with zeros, which is exact as well: averages of B
itself would shrink the columns that few clients train.

Up and down: r_i d numbers per layer, after the base weights in the first payload. The model is linear in what is sent,
so masks that cancel, or noise, act on the product in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.types import Job, Tree
from strategies.spaces.lora.averaged import AbstractAveraged, first, increments, install_pairs, padded
from strategies.spaces.lora.base import hosted
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.names import FACTOR, WHOLE, B
from strategies.spaces.lora.warm import factors_of


@dataclass(frozen=True)
class Ffa(AbstractAveraged):
    """FFA-LoRA: a fixed A shared by all clients; B is trained and averaged.

    Hyper-parameters: see `AbstractLora`. It needs a larger learning rate than other adapters.
    """

    def adapter_payload(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        return {f"{FACTOR}{n}.{B}": p.left for n, p in self.cut_for(state, job).items()}

    def trained(self, version: int) -> tuple[str, ...]:
        return (B,)

    def fill_adapters(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        install_pairs(panel, self._pairs(model, payload))

    def adapter_update(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        return increments(panel)

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        held, sent = factors_of(dict(before.items())), dict(delta.items())
        whole = {f"{n}.{B}": padded(sent[f"{n}.{B}"], B, p.rank) for n, p in held.items()}
        return tree.flatten({**whole, **{n: leaf for n, leaf in sent.items() if n.startswith(WHOLE)}})

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        return tree.gram(deltas)

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        return tree.weighted_sum(deltas, tree.scaled(coefficients, scales))

    def _pairs(self, model: Model, payload: Mapping[str, Tensor]) -> dict[str, Pair]:
        """The received B with the A of the seed."""
        shapes = hosted(model).shapes
        drawn = first(self, shapes)
        found = {}
        for name in shapes:
            left = payload[f"{FACTOR}{name}.{B}"]
            found[name] = Pair(left, drawn[name][: left.shape[1]].to(left.dtype))
        return found
