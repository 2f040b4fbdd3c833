"""Every trainable parameter and floating-point buffer travels, as one vector.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedhet.bases import AbstractDense
from fedhet.model import Model
from fedhet.tree import FlatTree
from fedhet.types import Job, Tree


@dataclass(frozen=True)
class Full(AbstractDense):
    """The whole model. Raises ValueError if a payload does not fit the device's model."""

    def begin(self, model: Model) -> Tree:
        return FlatTree(model.schema, model.flat.clone())

    def install(self, model: Model, payload: Tree, job: Job) -> None:
        model.flat.copy_(flat_of(model, payload))

    def extract(self, model: Model, payload: Tree) -> Tree:
        return FlatTree(model.schema, model.flat - flat_of(model, payload))

    def restore(self, model: Model, state: Tree) -> None:
        model.flat.copy_(flat_of(model, state))


def flat_of(model: Model, tree: Tree) -> Tensor:
    """The buffer of a tree that has the model's schema."""
    if not isinstance(tree, FlatTree) or tree.schema != model.schema:
        odd = sorted(set(tree) ^ set(model.schema))[:3]
        raise ValueError(f"the payload is not this model's: {odd or 'shapes or order differ'}")
    return tree.flat
