"""Adapters that begin anew with every job: A drawn, B zero, so that the model starts as the base weights are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedhet.model.flat_model import Model
from fedhet.numerics.rng import stream
from fedhet.types import Job, Tree
from strategies.spaces.lora.base import AbstractProducts, hosted
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import A, B
from strategies.spaces.lora.sampling import Plan, Sampler


@dataclass(frozen=True)
class AbstractFresh(AbstractProducts):
    """Nothing but the base weights lives on between jobs; a subclass says how a combined product gets into them.

    same_start: all jobs of a version draw the same A, instead of one a client and turn.
    pool, every, explore: with a pool above 1 a job of rank r holds pool * r rows of each adapter, chooses every so many
    steps which r of them are trained and sent, and tries others for this share of them; see `sampling`. A device's
    memory is then that of a rank pool * r, what is sent stays that of r.
    """

    same_start: bool = False
    pool: int = 1
    every: int = 5
    explore: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pool", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.explore <= 1:
            raise ValueError(f"explore={self.explore} must be a share of the kept rows, in [0, 1]")

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

    def place(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        if self.pool == 1:
            self._begin(panel, job)
            return
        host, ranks = hosted(model), dict(zip(panel.factors, panel.kind.ranks, strict=True))
        more = tuple(min(self.pool * r, *host.shapes[name][:2]) for name, r in ranks.items())
        wide = host.activate(model, replace(panel.kind, ranks=more))
        self._begin(wide, job)
        draws = partial(stream, self.seed, "rows", job.client, job.turn)
        wide.follower = Sampler(wide, ranks, Plan(job.budget.steps, self.every, self.explore, draws))

    @torch.no_grad()
    def _begin(self, panel: Panel, job: Job) -> None:
        key = (job.version,) if self.same_start else (job.client, job.turn, job.version)
        shapes = {name: (int(f[A].shape[0]), f[A].shape[1:].numel()) for name, f in panel.factors.items()}
        for name, drawn in self.draw(shapes, *key).items():
            factor = panel.factors[name]
            factor[A].copy_(drawn.view(factor[A].shape))
            factor[B].zero_()

    def brought(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        """The products as they are after the job, with s on A, once."""
        sampler = panel.follower if isinstance(panel.follower, Sampler) else None
        if sampler is not None:
            sampler.close()
        brought: dict[str, Tensor] = {}
        for (name, factor), s in zip(panel.factors.items(), panel.kind.scalings, strict=True):
            a, b = factor[A].detach().flatten(1), factor[B].detach().flatten(1)
            if sampler is not None:
                kept = sampler.kept(name)
                a, b = a[kept], b[:, kept]
            brought[f"{name}.{A}"], brought[f"{name}.{B}"] = a * s, b.clone(memory_format=torch.contiguous_format)
        return brought

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        return delta
