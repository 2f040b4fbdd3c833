"""Dense spaces: leaves line up element by element, deltas are added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fedhet import former_names
from fedhet.model.flat_model import Model
from fedhet.numerics import tree
from fedhet.numerics.tree import Schema
from fedhet.types import Job, Tree


class AbstractDense(ABC):
    """Geometry of plain vectors. Subclasses say what is sent and how it is installed."""

    gives: ClassVar[frozenset[str]] = frozenset({"coordinates"})

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        former_names.rename_hooks(cls)

    @abstractmethod
    def begin(self, model: Model) -> Tree: ...

    @abstractmethod
    def install(self, model: Model, payload: Tree, job: Job) -> None: ...

    @abstractmethod
    def extract(self, model: Model, payload: Tree) -> Tree: ...

    @abstractmethod
    def restore(self, model: Model, state: Tree) -> None: ...

    def offer(self, state: Tree, job: Job) -> Tree:
        return state

    def expects(self, state: Tree, job: Job) -> Schema:
        return Schema.of(state)

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        return delta

    def split_optimized(self, delta: Tree) -> tuple[Tree, Tree]:
        return delta, {}

    def merge(self, state: Tree, delta: Tree) -> Tree:
        return tree.add(state, delta)

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        return tree.gram(deltas)

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        return tree.weighted_sum(deltas, tree.scaled(coefficients, scales))
