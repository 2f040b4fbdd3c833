"""A model on a device: any `nn.Module`, its parameters and gradients laid out as views of two flat buffers.

Installing a payload is then one copy, an SGD step one fused multiply-add, and the module object is reused for every
client of a process. `Model` owns the loss, so local work is the same for classifiers and for a quadratic test world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fedhet.descent import Batch
from fedhet.perceptron import Perceptron
from fedhet.tree import FlatTree, Leaf, Schema

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(output, target) to a scalar, the mean over the batch."""


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (..., classes) against integer targets (...): images and sequences alike."""
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


class Model:
    """A module with flat storage.

    `flat` holds every trainable parameter followed by the floating-point buffers (batch-norm statistics); integer
    buffers stay in the module and are not federated. `params` is the part the optimiser touches and `grad` its
    gradient, of equal length. `extras` carries what a space installs beside the parameters (control variates) and
    what work leaves for it to extract. `perceptron` is the shorter way to the same gradients, where there is one.
    """

    def __init__(self, module: nn.Module, loss: Loss = cross_entropy) -> None:
        self.module, self.loss_of = module, loss
        self.extras: dict[str, Tensor] = {}
        trainable = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
        if not trainable:
            raise ValueError(f"{type(module).__name__} has no trainable parameter")
        buffers = [(k, b) for k, b in module.named_buffers() if b.is_floating_point()]
        kinds = {t.dtype for _, t in [*trainable, *buffers]}
        if len(kinds) != 1:
            raise ValueError(f"parameters and buffers must share one dtype, found {sorted(map(str, kinds))}")
        self.schema = Schema(tuple((k, Leaf(tuple(t.shape), t.dtype)) for k, t in [*trainable, *buffers]))
        dtype = kinds.pop()
        self.flat = torch.empty(self.schema.size, dtype=dtype)
        count = sum(p.numel() for _, p in trainable)
        self.params, self.grad = self.flat[:count], torch.zeros(count, dtype=dtype)
        at = 0
        with torch.no_grad():
            for _, p in trainable:
                view = self.flat[at : at + p.numel()].view(p.shape)
                view.copy_(p)
                p.data = view
                p.grad = self.grad[at : at + p.numel()].view(p.shape)
                at += p.numel()
            for _, b in buffers:
                view = self.flat[at : at + b.numel()].view(b.shape)
                view.copy_(b)
                b.data = view
                at += b.numel()
        self.perceptron = Perceptron.of(module) if loss is cross_entropy else None

    def replace(self, module: nn.Module, schema: Schema, flat: Tensor, grad: Tensor) -> None:
        """Let a module that lays out its own storage take this model's place, as adapters around it do: `flat` by
        `schema`, its first elements the parameters, `grad` their gradient."""
        self.module, self.schema, self.flat, self.grad = module, schema, flat, grad
        self.params, self.perceptron = flat[: grad.numel()], None

    def tree(self) -> FlatTree:
        """The parameters now, as a tree over the live buffer: clone `.flat` to keep them."""
        return FlatTree(self.schema, self.flat)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Fill `grad` with the gradient of the mean loss on one batch; returns that loss, detached, shape ().

        Perceptrons with the standard loss take a shorter way to the same bits.
        """
        if self.perceptron is not None and y.dim() == 1 and self.perceptron.fits(x):
            return self.perceptron.gradient(x, y)
        self.grad.zero_()
        loss = self.loss_of(self.module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def descend(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        """Take one step of plain gradient descent on one batch; returns the loss before it, detached, shape ().

        What `gradient` and `params.add_(grad, alpha=-rate)` do, to rounding, without laying out the gradient: `grad`
        holds nothing afterwards.
        """
        short = self._short()
        if short is not None and y.dim() == 1 and short.fits(x):
            return short.descend(x, y, rate)
        loss = self.loss_of(self.module(x), y)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        for p, g in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
            if g is not None:
                p.data.add_(g, alpha=-rate)
        return loss.detach()

    def descend_all(self, batches: Sequence[Batch], rate: float) -> Tensor:
        """What `descend` does on one batch after the other, bit for bit; the losses before each step, (steps,)."""
        short = self._short()
        losses = short.descend_all(batches, rate) if short is not None else None
        return torch.stack([self.descend(x, y, rate) for x, y in batches]) if losses is None else losses

    def _short(self) -> Perceptron | None:
        """The perceptron whose steps are those of this model: none if a space shows the work a part of it."""
        short = self.perceptron
        return short if short is not None and self.params.numel() == short.size else None

    @torch.no_grad()
    def predict(self, x: Tensor, batch: int = 1024) -> Tensor:
        """Outputs for all of x in evaluation mode, shape (n, ..., classes); the training flag is put back."""
        training = self.module.training
        self.module.eval()
        try:
            return torch.cat([self.module(x[at : at + batch]) for at in range(0, len(x), batch)])
        finally:
            self.module.train(training)
