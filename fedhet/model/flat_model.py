"""A model on a device: any `nn.Module`, its parameters and gradients laid out as views of two flat buffers.

Installing a payload is then one copy, an SGD step one fused multiply-add, and the module object is reused for every
client of a process. `Model` owns the loss, so local work is the same for classifiers and for a quadratic test world.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedhet import native
from fedhet.model.module_state import ModuleState, Put
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.numerics.wire_format import NAMES
from fedhet.types import Batch

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(output, target) to a scalar, the mean over the batch."""


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (..., classes) against integer targets (...): images and sequences alike.

    Raises ValueError if the output has no axis of classes beside those of the target.
    """
    if output.dim() < 2:
        raise ValueError(f"the outputs have shape {tuple(output.shape)}: cross-entropy needs a number for every class")
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


class Model:
    """A module with flat storage.

    `flat` holds every trainable parameter followed by the finite floating-point buffers (batch-norm statistics).
    Everything else, integer buffers first of all, is not federated: `reset` gives it the value it was built with before
    every job, so that nothing of one client reaches another, and that value is what a finished run saves. `params` is
    the part the optimiser touches and `grad` its gradient, of equal length. `extras` carries what a space installs
    beside the parameters (control variates) and what work leaves for it to extract. `perceptron` is the shorter way to
    the same gradients, where there is one (`fedhet.native.stepper`).

    Raises ValueError naming the tensor that does not fit.
    """

    def __init__(self, module: nn.Module, loss: Loss = cross_entropy) -> None:
        self.module, self.loss_of = module, loss
        self.extras: dict[str, Tensor] = {}
        trainable = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
        if not trainable:
            raise ValueError(f"{type(module).__name__} has no trainable parameter")
        _refuse_shapeless(module)
        buffers = [(k, b) for k, b in module.named_buffers() if b.is_floating_point() and bool(b.isfinite().all())]
        dtype = _one_dtype(trainable, buffers)
        self.schema = Schema(tuple((k, Leaf(tuple(t.shape), t.dtype)) for k, t in [*trainable, *buffers]))
        self.flat = torch.empty(self.schema.size, dtype=dtype)
        count = sum(p.numel() for _, p in trainable)
        self.params, self.grad = self.flat[:count], torch.zeros(count, dtype=dtype)
        self._bound: list[tuple[str, nn.Parameter, Tensor, Tensor]] = []
        at = 0
        with torch.no_grad():
            for name, p in trainable:
                view = self.flat[at : at + p.numel()].view(p.shape)
                view.copy_(p)
                p.data = view
                p.grad = self.grad[at : at + p.numel()].view(p.shape)
                self._bound.append((name, p, view, p.grad))
                at += p.numel()
            for _, b in buffers:
                view = self.flat[at : at + b.numel()].view(b.shape)
                view.copy_(b)
                b.data = view
                at += b.numel()
        self.perceptron = native.stepper(module) if loss is cross_entropy else None
        self._travels = [b for _, b in buffers]
        self._state = ModuleState(module, self._travels)
        self.batch_statistics = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        """Whether training needs batches of two samples or more."""
        self.foreign = not all(type(m).__module__.startswith("torch.") for m in module.modules())
        """Whether some part is not torch's own code."""

    def remember(self) -> None:
        """What is not federated is now as `reset` shall leave it: after weights of a finished run were put in."""
        self._state = ModuleState(self.module, self._travels)

    def reset(self, seed: int = 0) -> None:
        """Before a job's payload is installed: whatever an earlier job or an evaluation left beside it is undone, see
        `fedhet.model.module_state`. `seed` is for random generators that the module owns."""
        self._state.reset(seed)
        for _, p, view, grad in self._bound:
            if p.data_ptr() != view.data_ptr():
                p.data = view
            if p.grad is not grad:
                p.grad = grad
            if not p.requires_grad:
                p.requires_grad_(True)

    def aside(self) -> Put:
        """Remember what is not federated as it is now; the result puts it back."""
        return self._state.aside()

    def settle(self) -> None:
        """After a job's training, before anything is extracted: tensors that the module replaced are copied to where
        they travel. Raises ValueError for what cannot be."""
        self._state.settle()
        for name, p, view, _ in self._bound:
            if p.data_ptr() != view.data_ptr():
                if p.shape != view.shape:
                    raise ValueError(f"the parameter {name} of shape {tuple(view.shape)} became {tuple(p.shape)}")
                view.copy_(p.data)
                p.data = view

    def replace(self, module: nn.Module, schema: Schema, flat: Tensor, grad: Tensor) -> None:
        """Let a module that lays out its own storage take this model's place, as adapters around it do: `flat` by
        `schema`, its first elements the parameters, `grad` their gradient."""
        self.module, self.schema, self.flat, self.grad = module, schema, flat, grad
        self.params, self.perceptron = flat[: grad.numel()], None
        self._bound = []  # the new module sees to its own storage

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

    def _short(self) -> native.Stepper | None:
        """The perceptron whose steps are those of this model: none if a space shows the work a part of it."""
        short = self.perceptron
        return short if short is not None and self.params.numel() == short.size else None

    @torch.no_grad()
    def predict(self, x: Tensor, batch: int = 1024) -> Tensor:
        """Outputs for all of x in evaluation mode, shape (n, ..., classes); the module is as it was afterwards."""
        modes = [(part, part.training) for part in self.module.modules()]
        back = self._state.aside()
        self.module.eval()
        try:
            return torch.cat([self.module(x[at : at + batch]) for at in range(0, len(x), batch)])
        finally:
            back()
            for part, training in modes:
                part.training = training


def _refuse_shapeless(module: nn.Module) -> None:
    """Raises ValueError for a tensor without storage of its own yet."""
    for name, t in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(t):
            raise ValueError(f"{name} has no shape yet (a lazy layer): run one batch through the module first")
        if t.is_meta:
            raise ValueError(f"{name} is on the meta device and holds no numbers: build the module on the CPU")


def _one_dtype(parameters: Sequence[tuple[str, Tensor]], buffers: Sequence[tuple[str, Tensor]]) -> torch.dtype:
    """The dtype that all of these share. Raises ValueError naming one that has another."""
    usual = Counter(t.dtype for _, t in parameters).most_common(1)[0][0]
    for what, tensors in (("parameter", parameters), ("buffer", buffers)):
        for name, t in tensors:
            if t.dtype != usual:
                raise ValueError(
                    f"the {what} {name} is {_plain(t.dtype)}, the parameters are {_plain(usual)}: what is sent has one "
                    f"dtype; make it {_plain(usual)}, or the whole model by module.to(torch.{_plain(usual)})"
                )
    if usual not in NAMES or not usual.is_floating_point:
        kinds = ", ".join(_plain(kind) for kind in NAMES if kind.is_floating_point)
        raise ValueError(
            f"the parameter {parameters[0][0]} is {_plain(usual)}, which cannot be sent; use one of {kinds}"
        )
    return usual


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
