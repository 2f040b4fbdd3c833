"""The full model: every trainable parameter and floating-point buffer is sent, as one vector.

State, payload and delta have the model's names and shapes; delta = after - before. McMahan et al.,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedhet.bases import AbstractDense
from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.numerics.tree import FlatTree
from fedhet.types import Job, Tree


@dataclass(frozen=True)
class Full(AbstractDense):
    """The full model: every trainable parameter and floating-point buffer is sent.

    Payloads are read only, as they may be in memory shared with other processes. Raises ValueError if a payload does
    not fit the device's model.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"coordinates", "flat"})

    def begin(self, model: Model) -> Tree:
        return FlatTree(model.schema, model.flat.clone())

    def install(self, model: Model, payload: Tree, job: Job) -> None:
        model.flat.copy_(flat_of(model, payload))

    def extract(self, model: Model, payload: Tree) -> Tree:
        delta = wire_format.blank(model.schema)
        torch.sub(model.flat, flat_of(model, payload), out=delta.flat)
        return delta

    def restore(self, model: Model, state: Tree) -> None:
        model.flat.copy_(flat_of(model, state))


def flat_of(model: Model, tree: Tree) -> Tensor:
    """The buffer of a tree that has the model's schema."""
    if not isinstance(tree, FlatTree):
        raise ValueError(f"the payload is a {type(tree).__name__} of separate tensors, not one flat buffer")
    if tree.schema != model.schema:
        unknown, missing = sorted(set(tree) - set(model.schema)), sorted(set(model.schema) - set(tree))
        what = (
            f"unknown {unknown[:3]}, missing {missing[:3]}" if unknown or missing else "shapes, dtypes or order differ"
        )
        raise ValueError(f"the payload is not this model's: {what}")
    return tree.flat
