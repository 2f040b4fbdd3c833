"""Adapters that begin anew with every job: A drawn, B zero, so that the model starts as the base weights are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhet.model import Model
from fedhet.types import Job, Tree
from strategies.spaces.lora.base import AbstractProducts
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import A, B


@dataclass(frozen=True)
class AbstractFresh(AbstractProducts):
    """Nothing but the base weights lives on between jobs; a subclass says how a combined product gets into them.

    same_start: all jobs of a version draw the same A, instead of one a client and turn.
    """

    same_start: bool = False

    @abstractmethod
    def merge(self, state: Tree, delta: Tree) -> Tree: ...

    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        return {}

    def beside(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        return {}

    def handed(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        return {}

    def trained(self, version: int) -> tuple[str, ...]:
        return (A, B)

    @torch.no_grad()
    def place(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        key = (job.version,) if self.same_start else (job.client, job.turn, job.version)
        shapes = {name: (int(f[A].shape[0]), f[A].shape[1:].numel()) for name, f in panel.factors.items()}
        for name, drawn in self.draw(shapes, *key).items():
            factor = panel.factors[name]
            factor[A].copy_(drawn.view(factor[A].shape))
            factor[B].zero_()

    def brought(self, panel: Panel, payload: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The products as they are after the job, with s on A, once."""
        brought: dict[str, Tensor] = {}
        for (name, factor), s in zip(panel.factors.items(), panel.kind.scalings, strict=True):
            brought[f"{name}.{A}"] = factor[A].detach().flatten(1) * s
            brought[f"{name}.{B}"] = factor[B].detach().flatten(1).clone()
        return brought

    def accept(self, before: Tree, job: Job, delta: Tree) -> Tree:
        return delta
