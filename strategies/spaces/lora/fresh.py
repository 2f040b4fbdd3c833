"""Base of spaces whose adapters are initialised in every job: A drawn, B zero, so that the model equals the base."""

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
from strategies.spaces.lora.base import hosted
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.layers import Shape
from strategies.spaces.lora.names import A, B
from strategies.spaces.lora.products import AbstractProducts
from strategies.spaces.lora.sampling import Plan, Sampler


@dataclass(frozen=True)
class AbstractFresh(AbstractProducts):
    """Only the base weights persist between jobs; a subclass defines how a combined product is added to them.

    same_start: all jobs of a version draw the same A, in place of one per client and turn.
    pool, every, explore: with a pool above 1 a job of rank r has pool * r rows of each adapter. After every `every`
    steps it selects the r rows that are trained and sent, the share `explore` of them at random; see `sampling`. A
    device then needs the memory of rank pool * r, and sends rank r.
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
            raise ValueError(f"explore={self.explore} must be a share of the active rows, in [0, 1]")

    @abstractmethod
    def merge(self, state: Tree, delta: Tree) -> Tree: ...

    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        return {}

    def adapter_products(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        return {}

    def adapter_payload(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        return {}

    def trained(self, version: int) -> tuple[str, ...]:
        return (A, B)

    def fill_adapters(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
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

    def adapter_update(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        """The products after the job, with s folded into A."""
        sampler = panel.follower if isinstance(panel.follower, Sampler) else None
        if sampler is not None:
            sampler.close()
        factors: dict[str, Tensor] = {}
        for (name, factor), s in zip(panel.factors.items(), panel.kind.scalings, strict=True):
            a, b = factor[A].detach().flatten(1), factor[B].detach().flatten(1)
            if sampler is not None:
                active = sampler.active(name)
                a, b = a[active], b[:, active]
            factors[f"{name}.{A}"], factors[f"{name}.{B}"] = a * s, b.clone(memory_format=torch.contiguous_format)
        return factors

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        return delta
