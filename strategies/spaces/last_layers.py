"""TimelyFL's partial training: a device trains and sends the last layers only, as many as its budget's width.

The server sends the full model. A job of width a trains the last max(1, floor(a L)) of the model's L layers; the others
are frozen. Every parameter is averaged over the clients that trained it: with coefficients c_i of the rule, scales s_i
of the updates and S_p the clients that trained parameter p,

    delta_p = (sum_i c_i) * sum_{i in S_p} c_i s_i delta_{i,p} / sum_{i in S_p} c_i,

which is the rule's own sum if all clients trained p; a scale s_i applies also if only client i trained p.
Zhang et al., "TimelyFL: Heterogeneity-aware Asynchronous Federated Learning with Adaptive Partial Training",
arXiv:2304.06947.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedhet.bases import AbstractDense
from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Schema
from fedhet.types import Job, Tree

SLACK = 1e-9
"""Tolerance, in layers, for products that rounding puts just below an integer."""

WIDTH = "width"
"""Key of a job's width in the device's `model.extras`."""


def layers(schema: Schema) -> list[str]:
    """The modules with tensors of their own, in the order of the schema."""
    return list(dict.fromkeys(_layer(name) for name in schema))


def trained(schema: Schema, width: float) -> Schema:
    """The leaves that a job of this width trains and sends: those of the last layers, with their statistics.

    Raises ValueError unless width is in (0, 1].
    """
    if not 0.0 < width <= 1.0:
        raise ValueError(f"width={width} is not in (0, 1]; it is the share of the layers that are trained")
    names = layers(schema)
    last = set(names[len(names) - max(1, math.floor(width * len(names) + SLACK)) :])
    return schema if len(last) == len(names) else Schema(tuple(x for x in schema.leaves if _layer(x[0]) in last))


@dataclass(frozen=True)
class LastLayers(AbstractDense):
    """Partial training: each client trains and sends its last layers, a share `width` (from the budget) of all.

    Updates of different widths have different leaves, so this space gives no coordinates. Inner products count a
    parameter that was not trained as zero: norms are right, but narrow updates appear close to each other, so rules
    that compare updates are refused (`partial`). If all widths are 1 the results are those of the full space. A layer
    is a module with tensors of its own. Raises ValueError if a payload does not fit the device's model.
    """

    gives: ClassVar[frozenset[str]] = frozenset()
    partial: ClassVar[bool] = True

    def begin(self, model: Model) -> Tree:
        return FlatTree(model.schema, model.flat.clone())

    def expects(self, state: Tree, job: Job) -> Schema:
        return trained(Schema.of(state), job.budget.width)

    def install(self, model: Model, payload: Tree, job: Job) -> None:
        """Copy the full model, and restrict the work to the parameters that the job trains.

        Raises ValueError if the last layers have statistics only.
        """
        model.flat.copy_(_flat(model, payload))
        model.extras[WIDTH] = torch.tensor(job.budget.width, dtype=torch.float64)
        own, at, still = trained(model.schema, job.budget.width), 0, 0
        for name, parameter in model.module.named_parameters():
            if parameter.grad is not None:  # the model's own choice of what is trainable
                parameter.requires_grad_(name in own)  # no backward pass through frozen layers
                at += parameter.numel()
                still += 0 if name in own else parameter.numel()
        if still == at:
            raise ValueError(f"width={job.budget.width} trains no parameter of this model: its last layers have none")
        gradient = model.grad.as_strided((at,), (1,), 0)  # of all parameters, whatever the last job trained
        model.params, model.grad = model.flat[still:at], gradient[still:]

    def extract(self, model: Model, payload: Tree) -> Tree:
        moved = FlatTree(model.schema, model.flat - _flat(model, payload))
        own = trained(model.schema, float(model.extras[WIDTH]))
        if own is model.schema:
            return moved
        return FlatTree(own, torch.cat([moved[name].reshape(-1) for name in own]))

    def restore(self, model: Model, state: Tree) -> None:
        model.flat.copy_(_flat(model, state))

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        """Raises ValueError for a negative coefficient if some updates are partial: there is no mean then."""
        factors = tree.scaled(coefficients, scales)
        if tree.same_layout(deltas):
            return tree.weighted_sum(deltas, factors)
        if min(coefficients) < 0.0:
            raise ValueError(f"coefficients {list(coefficients)} must not be negative where updates cover a part")
        total, result = math.fsum(coefficients), dict[str, Tensor]()
        for name in max(deltas, key=len):  # widths nest: the longest has all names
            there = [i for i, d in enumerate(deltas) if name in d]
            covered = math.fsum(coefficients[i] for i in there)
            share = 1.0 if len(there) == len(deltas) else total / covered if covered else 0.0
            leaf = tree.weighted_sum([{name: deltas[i][name]} for i in there], [factors[i] * share for i in there])
            result[name] = leaf[name]
        return tree.flatten(result)

    def merge(self, state: Tree, delta: Tree) -> Tree:
        if tree.same_layout([state, delta]):
            return tree.add(state, delta)
        return tree.flatten({name: leaf + delta[name] if name in delta else leaf for name, leaf in state.items()})

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        if tree.same_layout(deltas):
            return tree.gram(deltas)
        total = np.zeros((len(deltas), len(deltas)))
        for name in max(deltas, key=len):
            who = [i for i, d in enumerate(deltas) if name in d]
            total[np.ix_(who, who)] += tree.gram([{name: deltas[i][name]} for i in who])
        return total


def _layer(name: str) -> str:
    """The module a tensor belongs to."""
    return name.rpartition(".")[0]


def _flat(model: Model, payload: Tree) -> Tensor:
    """The buffer of a payload that has the model's schema."""
    if not isinstance(payload, FlatTree) or payload.schema != model.schema:
        strange = list(itertools.islice((n for n in payload if n not in model.schema), 3))
        raise ValueError(f"the payload is not this model's: {strange or 'shapes, dtypes or order differ'}")
    return payload.flat
