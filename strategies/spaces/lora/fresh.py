"""Adapters that begin anew with every job: A drawn, B zero, so that the model starts as the base weights are."""

from __future__ import annotations

import torch
from torch import Tensor

from fedhet.types import Job
from strategies.spaces.lora.base import AbstractLora
from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.names import A, B


@torch.no_grad()
def begin_fresh(space: AbstractLora, panel: Panel, job: Job, *, same: bool) -> None:
    """Draw the adapters of a job: by client and turn, or, with `same`, by the version alone."""
    key = (job.version,) if same else (job.client, job.turn, job.version)
    shapes = {name: (int(f[A].shape[0]), f[A].shape[1:].numel()) for name, f in panel.factors.items()}
    for name, drawn in space.draw(shapes, *key).items():
        factor = panel.factors[name]
        factor[A].copy_(drawn.view(factor[A].shape))
        factor[B].zero_()


def bring_fresh(panel: Panel) -> dict[str, Tensor]:
    """The products as they are after the job, with s on A, once."""
    brought: dict[str, Tensor] = {}
    for (name, factor), s in zip(panel.factors.items(), panel.kind.scalings, strict=True):
        brought[f"{name}.{A}"] = factor[A].detach().flatten(1) * s
        brought[f"{name}.{B}"] = factor[B].detach().flatten(1).clone()
    return brought
