"""The clients' local training on the server: the same steps on other data, from the configuration of the work.

Plain SGD, w <- w - lr * grad F(w), with weight decay and a proximal term mu * (w - w_0) if the work has them, on as
many batches per epoch as the client's samples make. Only such a path can be unrolled; any other work is an obstacle.
Wang, Gao, "Tackling Intertwined Data and Device Heterogeneities in Federated Learning with Unlimited Staleness",
arXiv:2309.13536.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedhet import native
from fedhet.model.flat_model import Model

PLAIN = {"clients.work.sgd.Sgd": "", "clients.work.fedprox.FedProx": "mu"}
"""Works whose steps are implemented here, with the parameter of their proximal term."""


def soft_cross_entropy(output: Tensor, shares: Tensor) -> Tensor:
    """Mean over the batch of -sum_c s_c log p_c: logits (n, classes) against label shares (n, classes)."""
    return -(shares * output.log_softmax(-1)).sum(-1).mean()


@dataclass(frozen=True)
class Procedure:
    """The local training that the configuration of the clients' work describes.

    work: the work's configuration, `_target_` and hyper-parameters; it is read, not built. A work that is not in
    `PLAIN`, or has momentum or clipping, is an `obstacle` and no error: late updates are then not inverted.
    """

    work: Mapping[str, Any]

    @property
    def obstacle(self) -> str:
        """Why the steps cannot be unrolled; empty if they can."""
        name = str(self.work.get("_target_"))
        if name not in PLAIN:
            return f"the work {name} is not known step by step"
        if self.work["momentum"]:
            return f"momentum={self.work['momentum']} carries over from step to step"
        if self.work["clip_norm"] is not None:
            return f"clip_norm={self.work['clip_norm']} cuts gradients"
        return ""

    @property
    def decay(self) -> float:
        return float(self.work["weight_decay"])

    @property
    def pull(self) -> float:
        """mu of the proximal term mu * (w - w_0)."""
        name = PLAIN[str(self.work["_target_"])]
        return float(self.work[name]) if name else 0.0

    def rate(self, version: int) -> float:
        """Step size of a job that starts from `version`."""
        return float(self.work["lr"]) * float(self.work["lr_decay"]) ** version

    def parts(self, images: int, samples: float) -> tuple[slice, ...]:
        """The batches of an epoch over `images` reconstructed images: as many as the client makes of its `samples`."""
        count = min(images, max(1, math.ceil(samples / int(self.work["batch"]))))
        size = math.ceil(images / count)
        return tuple(slice(at, min(at + size, images)) for at in range(0, images, size))


@dataclass(frozen=True, slots=True)
class Path:
    """One job's steps: their number and size, their batches, and what is added to the gradients."""

    steps: int
    rate: float
    parts: tuple[slice, ...]
    decay: float = 0.0
    pull: float = 0.0

    def part(self, step: int) -> slice:
        return self.parts[step % len(self.parts)]


def train(model: Model, start: Tensor, x: Tensor, shares: Tensor, path: Path) -> Tensor:
    """The displacement of `path` from `start`, bit for bit that of the client's own loop.

    x (n, *input_shape), shares (n, classes). `model` is overwritten; its loss must take label shares.
    """
    model.flat.copy_(start)
    model.module.train()
    params, grad = model.params, model.grad
    if not path.decay and not path.pull:
        short = native.stepper(model.module)
        batches = [(x[at], shares[at]) for at in map(path.part, range(path.steps))]
        if short is not None and short.descend_all(batches, path.rate) is not None:
            return model.flat - start
        for inputs, targets in batches:
            (short if short is not None and short.fits(inputs) else model).descend(inputs, targets, path.rate)
        return model.flat - start
    anchor = params.clone() if path.pull else params
    for k in range(path.steps):
        at = path.part(k)
        model.gradient(x[at], shares[at])
        if path.decay:
            grad.add_(params, alpha=path.decay)
        if path.pull:
            grad.add_(params, alpha=path.pull).add_(anchor, alpha=-path.pull)
        params.add_(grad, alpha=-path.rate)
    return model.flat - start


def scratch(factory: Any, input_shape: tuple[int, ...], classes: int) -> Model:
    """A model with the loss above and uninitialised parameters; it draws no random numbers."""
    with torch.device("meta"):
        module: nn.Module = factory(input_shape=input_shape, classes=classes)
    return Model(module.to_empty(device="cpu"), soft_cross_entropy)


def unfit(module: nn.Module) -> str:
    """Why a model cannot be inverted (no gradient by its input, or state that changes by call); empty if it can."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            return f"{name} drops units at random"
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            return f"{name} takes integers, which have no gradient"
        if any(True for _ in part.buffers(recurse=False)):
            return f"{name} has statistics in addition to its parameters"
    return ""
