"""FedIT and HetLoRA: adapters averaged factor by factor, padded with zeros where ranks differ.

Equal ranks: A <- sum_i p_i A_i, B <- sum_i p_i B_i. Zhang et al., "Towards Building the Federated GPT: Federated
Instruction Tuning", arXiv:2305.05644. The product of averages is not the average of products.

Unequal ranks: every client trains the first r_i rows and columns; its update is padded to the largest rank. Cho et
al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", arXiv:2401.06432, averages padded
factors themselves, so rows that few clients train shrink in both factors in every version; and weights clients by the
Frobenius norm of B_i A_i. Clients prune the last rows of their adapters, see `lora.pruning`. Each layer then has its
own rank; a client reports the largest one, which is the rank of its next job, and rows that only some layers pruned are
sent as zeros.

Up: r_i (d + k) numbers per layer; down: the same. The base weights are sent to a client once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedhet.engine.client_runner import CLIENT_STATE_PREFIX, METRIC_PREFIX
from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.types import KEPT_RANK, Job, Tree
from strategies.spaces.lora.averaged import AbstractAveraged, increments, install_pairs, padded
from strategies.spaces.lora.factors import norm
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.names import WHOLE, A, B, pairs
from strategies.spaces.lora.pruning import Pruner, shortened
from strategies.spaces.lora.warm import as_factors, cut, factors_of

RANKS = "lora/ranks"
"""A client's stored rank of each layer, after pruning."""

NORM = "lora/norm"
"""An update's leaf with the Frobenius norm of its product."""


@dataclass(frozen=True)
class PaddedLora(AbstractAveraged):
    """LoRA factors averaged one by one, zero-padded where ranks differ, as in FedIT and HetLoRA.

    target: "absolute" averages padded factors, "increment" adds the mean of padded increments, so that rows do not
    shrink. by_norm: redistribute the rule's coefficients in proportion to ||s_i B_i A_i||, with the same sum. decay,
    penalty, min_rank: with a decay below 1 a client prunes the rows of a layer beyond decay * r, down to min_rank,
    after a job in which their norm fell; penalty is their weight in the loss. Others: see `AbstractLora`. Raises
    ValueError for values out of range, and for a decay where increments are averaged.
    """

    target: str = "absolute"
    by_norm: bool = False
    decay: float = 1.0
    penalty: float = 0.0
    min_rank: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target not in ("absolute", "increment"):
            raise ValueError(f"target={self.target!r} must be absolute or increment")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay} must be in (0, 1]; 1 gives up no row")
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"penalty={self.penalty} must be 0 or more")
        if self.penalty and self.decay == 1:
            raise ValueError(f"penalty={self.penalty} needs a decay below 1, such as 0.99: it is on the rows beyond")
        if self.min_rank < 1:
            raise ValueError(f"min_rank={self.min_rank} must be at least 1")
        if self.decay < 1 and self.target == "increment":
            raise ValueError(f"decay={self.decay}: a row given up is a zero in an average: set target=absolute")

    def adapter_payload(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        return as_factors(self.cut_for(state, job))

    def trained(self, version: int) -> tuple[str, ...]:
        return (A, B)

    def fill_adapters(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        sent = factors_of(payload)
        if self.decay == 1:
            install_pairs(panel, sent)
            return
        ranks = {name: pair.rank for name, pair in sent.items()}
        kept = model.extras.get(CLIENT_STATE_PREFIX + RANKS)
        if kept is not None:
            ranks = {n: min(r, int(k)) for (n, r), k in zip(ranks.items(), kept.tolist(), strict=True)}
        install_pairs(panel, {name: shortened(pair, ranks[name]) for name, pair in sent.items()})
        panel.starts = sent
        panel.follower = Pruner(panel, ranks, self.decay, self.penalty, self.min_rank)

    def adapter_update(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        if isinstance(panel.follower, Pruner):
            panel.follower.close()
            ranks = panel.flat.new_tensor(list(panel.follower.pruned().values()))
            model.extras[CLIENT_STATE_PREFIX + RANKS], model.extras[METRIC_PREFIX + KEPT_RANK] = ranks, ranks.max()
        return increments(panel)

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        held, sent = factors_of(dict(before.items())), dict(delta.items())
        whole: dict[str, Tensor] = {}
        energy = 0.0
        for name, pair in pairs(sent).items():
            everything = held[name]
            if self.by_norm:
                start = cut(everything, pair.rank)
                energy += norm(type(pair)(start.left + pair.left, start.right + pair.right)) ** 2
            for letter, leaf, all_of_it in ((A, pair.right, everything.right), (B, pair.left, everything.left)):
                beyond = -all_of_it if self.target == "absolute" else None
                whole[f"{name}.{letter}"] = padded(leaf, letter, everything.rank, beyond)
        whole.update({n: leaf for n, leaf in sent.items() if n.startswith(WHOLE)})
        if self.by_norm:
            whole[NORM] = next(iter(whole.values())).new_tensor([energy**0.5])
        return tree.flatten(whole)

    @property
    def needs(self) -> frozenset[str]:
        """A plain mean with by_norm, which replaces the coefficients of the rule."""
        return frozenset({"mean"}) if self.by_norm else frozenset()

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        return tree.gram([_without(d) for d in deltas])

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        if self.by_norm:
            # a clipped or discounted update counts with its scaled norm
            lengths = np.array([float(d[NORM]) for d in deltas]) * (np.asarray(coefficients) != 0)
            lengths *= 1.0 if scales is None else np.abs(scales)
            if lengths.sum() > 0:
                coefficients = (lengths / lengths.sum() * sum(coefficients)).tolist()
        return tree.weighted_sum([_without(d) for d in deltas], tree.scaled(coefficients, scales))


def _without(delta: Tree) -> Tree:
    """An update without its norm."""
    return {n: leaf for n, leaf in delta.items() if n != NORM} if NORM in delta else delta
