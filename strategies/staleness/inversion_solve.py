"""One inversion as a self-contained task: named tensors in, named tensors out.

in   start (parameters,), target (parameters,), x (n, *input_shape), z (n, classes), numbers (4,) float64: steps, base
     version, the client's samples, iterations
out  x, z, loss () float64 and tried () int64: reconstructed data, relative loss, number of iterations
The displacement from any other model is then computed from the same data. arXiv:2309.13536, steps 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedhet.model.flat_model import Model
from fedhet.numerics.tree import FlatTree, Schema
from fedhet.types import Tree
from strategies.staleness.inversion_chain import Chain
from strategies.staleness.inversion_local import Path, Procedure, scratch, train, unfit
from strategies.staleness.inversion_search import Search
from strategies.staleness.inversion_unroll import Autograd, Objective, Second, largest


@dataclass(frozen=True)
class Solver:
    """The settings of all inversions of a run; the fields are those of `Inversion`."""

    factory: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    classes: int
    procedure: Procedure
    search: Search
    share: float
    loss: str

    @cached_property
    def model(self) -> Model:
        """A working model; its parameters are undefined between calls."""
        return scratch(self.factory, self.input_shape, self.classes)

    def obstacle(self, state: Tree) -> str:
        """Why this work or model cannot be unrolled; empty if it can."""
        if self._inner:
            return self._inner
        if Schema.of(state) != self.model.schema:
            shape = f"input_shape={list(self.input_shape)}, classes={self.classes}"
            return f"the model for {shape} has other parameters than the server's"
        return ""

    @cached_property
    def _inner(self) -> str:
        return self.procedure.obstacle or unfit(self.model.module)

    def path(self, steps: int, version: int, samples: float, images: int) -> Path:
        """The local steps of a client with `samples` samples in a job from `version`."""
        what = self.procedure
        return Path(steps, what.rate(version), what.parts(images, samples), what.decay, what.pull)

    def solve(self, task: Tree) -> Tree:
        """Reconstruct the data; inputs and outputs are those of the module."""
        steps, version, samples, iterations = task["numbers"].tolist()
        path = self.path(int(steps), int(version), samples, len(task["x"]))
        target = task["target"]
        mask = largest(target, self.share)
        objective = Objective(self._second, task["start"], target, path, mask, self.loss)
        found = self.search.run(objective, task["x"], task["z"], int(iterations))
        loss = torch.tensor(found.loss, dtype=torch.float64)
        return {"x": found.x, "z": found.z, "loss": loss, "tried": torch.tensor(len(found.losses))}

    def estimate(self, start: Tensor, x: Tensor, z: Tensor, path: Path) -> Tensor:
        """The displacement of the client's local training from `start` on reconstructed data."""
        return train(self.model, start, x, z.softmax(-1), path)

    @cached_property
    def _second(self) -> Second:
        return Chain.of(self.model.module) or Autograd(self.model)


def flat(tree: Tree) -> Tensor:
    """All leaves as one vector; the buffer itself if they are views of one."""
    return tree.flat if isinstance(tree, FlatTree) else torch.cat([leaf.reshape(-1) for leaf in tree.values()])


def shaped(vector: Tensor, like: Tree) -> Tree:
    """A vector as a tree with the leaves of another."""
    return FlatTree(like.schema if isinstance(like, FlatTree) else Schema.of(like), vector)
