"""Gradients and steps of a perceptron written out by hand: autograd's bits of a gradient, without its bookkeeping.

For layers h_0 = x, z_i = h_i W_i^T + b_i, h_{i+1} = max(z_i, 0) and the mean cross-entropy of the last z,

    dL/dz = (softmax(z) - onehot(y)) / n      dL/dW_i = (dL/dz_i)^T h_i      dL/db_i = sum_n dL/dz_i
    dL/dz_{i-1} = (dL/dz_i W_i) * [h_i > 0].

A step of a small model costs autograd more in nodes and allocations than in arithmetic. The kernels called here are
those that autograd would call, in its order, and they write into the parameters' gradients, so that no bit depends on
which of the two computed a gradient. A step of plain descent is taken inside the products and agrees with autograd's to
rounding; for small models and batches it is one compiled call (`fedhet.native.mlp_sgd`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedhet.native.mlp_sgd import IN_PLACE, Descent, Ends

if TYPE_CHECKING:
    from fedhet.types import Batch, IndexedBatches

NLL = torch.ops.aten.nll_loss_forward.default
NLL_BACKWARD = torch.ops.aten.nll_loss_backward.default
SOFTMAX_BACKWARD = torch.ops.aten._log_softmax_backward_data.default
RELU_BACKWARD = torch.ops.aten.threshold_backward.default
MEAN, IGNORE = 1, -100


class Perceptron:
    """Linear layers with ReLU between them, on their own parameters; see `fedhet.native.Stepper`.

    Gradients are written into `layer.weight.grad` and `layer.bias.grad`. `shapes` has (outputs, inputs) of each layer;
    `flat` is the vector of all parameters, or None if they do not lie in order in memory. Raises ValueError for a
    parameter without a gradient.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._weights = [layer.weight.detach() for layer in layers]
        self._across = [w.t() for w in self._weights]
        self._biases = [layer.bias.detach() for layer in layers]
        self._into = [_gradient(layer.weight) for layer in layers]
        self._bias_into = [_gradient(layer.bias) for layer in layers]
        self.shapes = tuple((layer.out_features, layer.in_features) for layer in layers)
        self.dtype = self._weights[0].dtype
        self._descent = Descent([self.shapes[0][1], *(out for out, _ in self.shapes)])
        self.flat = _row(self._weights, self._biases)

    @classmethod
    def of(cls, module: nn.Module) -> Perceptron | None:
        """The perceptron a module is, or None if it is anything else: it must be an `nn.Sequential` of an `nn.Flatten`
        and trainable `nn.Linear` layers with biases and `nn.ReLU` between them, without hooks, on the CPU."""
        if type(module) is not nn.Sequential or _watched(module):
            return None
        parts = list(module)
        if len(parts) < 2 or type(parts[0]) is not nn.Flatten or (parts[0].start_dim, parts[0].end_dim) != (1, -1):
            return None
        kinds = [nn.Linear if i % 2 == 0 else nn.ReLU for i in range(len(parts) - 1)]
        if len(kinds) % 2 == 0 or any(type(p) is not k for p, k in zip(parts[1:], kinds, strict=True)):
            return None
        layers = [p for p in parts if isinstance(p, nn.Linear)]
        if any(_watched(p) for p in parts) or not all(_usable(layer) for layer in layers):
            return None
        return cls(layers)

    @property
    def size(self) -> int:
        """Number of parameters, in the order weight, bias of each layer."""
        return sum(out * into + out for out, into in self.shapes)

    def compiles(self, samples: int) -> bool:
        """Whether steps on so many samples are compiled ones."""
        return self.dtype == torch.float32 and self.flat is not None and self._descent.fits(samples)

    def steps(
        self, rows: Tensor, batches: Sequence[Sequence[Batch]], rate: float, ends: Ends = IN_PLACE
    ) -> Tensor | None:
        """Compiled steps of each row, (count, parameters), on its batches, which are as long as the other rows' are.

        `ends` says where rows start and end if not in themselves. Returns the losses, (count, steps); or None, with
        nothing done, if a step is not for compiled code or there is something wrong with it, which torch then says.
        """
        sizes = [len(y) for _, y in batches[0]]
        every = [batch for own in batches for batch in own]
        kinds = {(y.dim(), y.dtype, y.is_contiguous()) for _, y in every}
        if kinds not in ({(1, torch.int64, True)}, {(2, torch.float32, True)}):
            return None
        if not all(map(self.compiles, set(sizes))) or not all(self.fits(x) for x, _ in every):
            return None
        return self._descent.steps(rows, every, sizes, rate, ends)

    def pick(self, rows: Tensor, picked: Sequence[IndexedBatches], rate: float, ends: Ends = IN_PLACE) -> Tensor | None:
        """The same steps on batches whose samples are still where the data set has them."""
        whole = picked[0]
        if whole.y.dtype != torch.int64 or not whole.y.is_contiguous() or not self.fits(whole.x):
            return None
        if not all(map(self.compiles, set(whole.sizes))):
            return None
        return self._descent.pick(rows, picked, rate, ends)

    def fits(self, x: Tensor) -> bool:
        """Whether a batch of inputs, (n, ...), can be taken: of the layers' dtype, and nobody asks for its gradient."""
        return x.dtype == self.dtype and x.dim() > 1 and not x.requires_grad and x.is_contiguous()

    @torch.no_grad()
    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the gradient of the mean cross-entropy of inputs (n, ...) and classes (n,); the loss, shape ()."""

        def write(i: int, g: Tensor, h: Tensor) -> None:
            torch.mm(g.t(), h, out=self._into[i])
            torch.sum(g, 0, out=self._bias_into[i])

        return self._through(x, y, write)

    def descend_all(self, batches: Sequence[Batch], rate: float) -> Tensor | None:
        """What `descend` does on one batch after the other, in one compiled call; the losses, (steps,), or None, with
        nothing done, if these are not all for compiled code."""
        losses = self.steps(self.flat[None], [batches], rate) if self.flat is not None else None
        return None if losses is None else losses[0]

    @torch.no_grad()
    def descend(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        """Take one step of plain gradient descent of length `rate`; the loss before it, shape ().

        y holds classes (n,), or each class's share in a sample (n, classes), which for shares of 0 and 1 is the same.
        The step is taken inside the product, W += -rate g^T h, which spares writing the gradient and reading it again,
        and rounds once less than gradient and step do. It is compiled if `fedhet.native.mlp_sgd` takes this shape and
        batch.
        """
        if self.flat is not None:
            losses = self.steps(self.flat[None], [[(x, y)]], rate)
            if losses is not None:
                return losses[0, 0]

        def step(i: int, g: Tensor, h: Tensor) -> None:
            self._weights[i].addmm_(g.t(), h, alpha=-rate)
            self._biases[i].add_(torch.sum(g, 0), alpha=-rate)

        return self._through(x, y, step)

    def _through(self, x: Tensor, y: Tensor, visit: Callable[[int, Tensor, Tensor], None]) -> Tensor:
        """Forward, and back: `visit(layer, dL/dz, h)` from the last layer to the first, each after its weights served.
        Returns the loss."""
        h = x.view(len(x), -1)
        held, last = [h], len(self._weights) - 1
        for i in range(last):
            h = torch.addmm(self._biases[i], h, self._across[i]).relu_()
            held.append(h)
        logs = torch.log_softmax(torch.addmm(self._biases[last], h, self._across[last]), 1)
        if y.dim() == 1:
            loss, total = NLL(logs, y, None, MEAN, IGNORE)
            g = NLL_BACKWARD(torch.ones_like(loss), logs, y, None, MEAN, IGNORE, total)
        else:
            loss, g = -(y * logs).sum(-1).mean(), y / -len(y)
        g = SOFTMAX_BACKWARD(g, logs, 1, logs.dtype)
        for i in range(last, -1, -1):
            below = RELU_BACKWARD(torch.mm(g, self._weights[i]), held[i], 0) if i else g
            visit(i, g, held[i])
            g = below
        result: Tensor = loss
        return result


def _row(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor | None:
    """All parameters in order as one vector, if that is how they lie in memory."""
    parts = [part for pair in zip(weights, biases, strict=True) for part in pair]
    at, whole = parts[0].data_ptr(), parts[0].untyped_storage().data_ptr()
    for part in parts:
        if part.data_ptr() != at or part.untyped_storage().data_ptr() != whole or not part.is_contiguous():
            return None
        at += part.nbytes
    size = sum(part.numel() for part in parts)
    return parts[0].as_strided((size,), (1,))


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ValueError("the parameters need their gradients laid out first")
    return parameter.grad


def _usable(layer: nn.Linear) -> bool:
    """A layer whose parameters are all there, trainable, and plainly stored."""
    both: tuple[Tensor | None, ...] = (layer.weight, layer.bias)
    return all(p is not None and p.requires_grad and p.grad is not None and p.device.type == "cpu" for p in both)


def _watched(module: nn.Module) -> bool:
    """Whether the module has hooks, which a gradient by hand would not call."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or any(p._backward_hooks for p in module.parameters(recurse=False))
