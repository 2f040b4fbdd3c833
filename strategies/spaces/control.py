"""SCAFFOLD's space: the full model and a control variate for every parameter.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv:1910.06378, Algorithm 1.
State (x, c), payload (x, c), delta (y - x, c_i+ - c_i). The rule combines the model part. The control part is always
c <- c + (1/n) sum_{i in S} s_i (c_i+ - c_i) for n clients in all, so that c is the mean of all c_i while no update is
scaled (s_i = 1). As this sum is a plain mean under any rule, the rule must be a mean as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedhet.bases import AbstractDense
from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.types import Job, Tree

PREFIX = "control."


@dataclass(frozen=True)
class ControlVariates(AbstractDense):
    """Sends the full model and SCAFFOLD's control variates.

    clients: n, the number of all clients. Leaves of the control part are named `control.<parameter>`; buffers
    (batch-norm statistics) have none. On a device `model.extras["control"]` is c, shape (parameters,), and the work
    stores its step c_i+ - c_i, of the same shape, in `model.extras["control_step"]`. Raises ValueError if that is
    missing, or if trees do not fit the model.
    """

    clients: int
    gives: ClassVar[frozenset[str]] = frozenset({"coordinates", "control"})
    needs: ClassVar[frozenset[str]] = frozenset({"mean"})

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients={self.clients} must be the number of all clients, at least 1")

    def begin(self, model: Model) -> Tree:
        return FlatTree(_doubled(model), torch.cat([model.flat, torch.zeros_like(model.params)]))

    def install(self, model: Model, payload: Tree, job: Job) -> None:
        values, control = _halves(model, payload)
        model.flat.copy_(values)
        model.extras["control"] = control.clone()

    def extract(self, model: Model, payload: Tree) -> Tree:
        step = model.extras.get("control_step")
        if step is None or step.shape != model.params.shape:
            raise ValueError("the work left no control step of the parameters' shape: this space needs work=scaffold")
        values, _ = _halves(model, payload)
        return FlatTree(_doubled(model), torch.cat([model.flat - values, step]))

    def restore(self, model: Model, state: Tree) -> None:
        model.flat.copy_(_halves(model, state)[0])

    def split_optimized(self, delta: Tree) -> tuple[Tree, Tree]:
        """The model part alone: with server momentum or a learning rate c would not be the mean of all c_i."""
        return _part(delta, control=False), _part(delta, control=True)

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        """Inner products of the model parts, without control variates."""
        return tree.gram([_part(d, control=False) for d in deltas])

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        values = tree.weighted_sum([_part(d, control=False) for d in deltas], tree.scaled(coefficients, scales))
        shares = tree.scaled([1.0 / self.clients] * len(deltas), scales)
        control = tree.weighted_sum([_part(d, control=True) for d in deltas], shares)
        assert isinstance(values, FlatTree) and isinstance(control, FlatTree)
        return FlatTree(Schema.of(deltas[0]), torch.cat([values.flat, control.flat]))


def _doubled(model: Model) -> Schema:
    """The model's schema with a control leaf for every trainable parameter."""
    at, control = 0, []
    for name, leaf in model.schema.leaves:
        if at < model.params.numel():
            control.append((PREFIX + name, Leaf(leaf.shape, leaf.dtype)))
        at += leaf.size
    return Schema((*model.schema.leaves, *control))


def _halves(model: Model, payload: Tree) -> tuple[Tensor, Tensor]:
    """Views of the model part and the control part."""
    if not isinstance(payload, FlatTree) or payload.schema != _doubled(model):
        raise ValueError("the payload is not this model's with control variates")
    size = model.flat.numel()
    return payload.flat[:size], payload.flat[size:]


def _part(delta: Tree, *, control: bool) -> FlatTree:
    """The model part or the control part of a delta, as a view."""
    flat = tree.flatten(delta)
    if not isinstance(flat, FlatTree):
        raise ValueError("the leaves of an update with control variates must share one dtype")
    schema = Schema(tuple((n, leaf) for n, leaf in flat.schema.leaves if n.startswith(PREFIX) == control))
    return FlatTree(schema, flat.flat[-schema.size :] if control else flat.flat[: schema.size])
