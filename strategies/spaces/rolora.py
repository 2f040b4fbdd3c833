"""RoLoRA: B and A are trained alternately, the other one frozen and equal on all clients, so that averages are exact.

Chen et al., "Robust Federated Finetuning of Foundation Models via Alternating Minimization of LoRA", arXiv:2409.02346:
jobs of version 0, 2, 4, ... train B, those of version 1, 3, 5, ... train A; B comes first because A has no gradient
while B is zero. Exact while all updates of a combination started from one version; late ones of the other turn add
their increments to the other factor.

Up: r_i d or r_i k numbers per layer. Down: the factor that changed since the client's version; both if the client
missed a version. The client stores the other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedhet.engine.client_runner import CLIENT_STATE_PREFIX
from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.types import Job, Tree
from strategies.spaces.lora.averaged import CHANGED, AbstractAveraged, increments, install_pairs, padded
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.ledger import WrongBase, version_of
from strategies.spaces.lora.names import FACTOR, WHOLE, A, B, pairs, under
from strategies.spaces.lora.warm import as_factors, factors_of


@dataclass(frozen=True)
class RoLora(AbstractAveraged):
    """RoLoRA: B and A are trained in alternate versions and averaged, which is exact.

    Hyper-parameters: see `AbstractLora`. A client whose rank grew since its last job cannot use its stored factor: that
    job fails, and the next one sends both factors.
    """

    def adapter_payload(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        both = as_factors(self.cut_for(state, job))
        behind = version_of(state) - job.held
        if job.held < 0 or behind > 1:
            return both
        changed = [letter for letter, moved in zip((A, B), state[CHANGED].tolist(), strict=True) if moved and behind]
        return {n: leaf for n, leaf in both.items() if n.rpartition(".")[2] in changed}

    def trained(self, version: int) -> tuple[str, ...]:
        return (B,) if version % 2 == 0 else (A,)

    def fill_adapters(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        factors = {**under(model.extras, CLIENT_STATE_PREFIX + FACTOR), **under(payload, FACTOR)}
        for name, factor in panel.factors.items():
            for letter, side in ((A, 0), (B, 1)):
                rank, there = factor[letter].shape[side], factors.get(f"{name}.{letter}")
                if there is None or there.shape[side] < rank:
                    raise WrongBase(f"base: this device holds no {name}.{letter} of rank {rank}: send both factors")
                factors[f"{name}.{letter}"] = there.narrow(side, 0, rank)
        for name, leaf in factors.items():
            model.extras[CLIENT_STATE_PREFIX + FACTOR + name] = leaf.contiguous()
        install_pairs(panel, pairs(factors))

    def adapter_update(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        return increments(panel)

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        held, sent = factors_of(dict(before.items())), dict(delta.items())
        (letter,) = self.trained(job.version)
        whole: dict[str, Tensor] = {}
        for name, pair in held.items():
            step = padded(sent[f"{name}.{letter}"], letter, pair.rank)
            whole[f"{name}.{A}"] = step if letter == A else torch.zeros_like(pair.right)
            whole[f"{name}.{B}"] = step if letter == B else torch.zeros_like(pair.left)
        return tree.flatten({**whole, **{n: leaf for n, leaf in sent.items() if n.startswith(WHOLE)}})

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        return tree.gram(deltas)

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        return tree.weighted_sum(deltas, tree.scaled(coefficients, scales))
