"""Fast paths: sums of large vectors, stacks of large matrices, steps of small perceptrons, and memory settings.

This package is the only thing that other code imports; the modules below it are loaded when a function here first
needs them, so importing it costs nothing. Every function can decline: it returns False or None and has done nothing,
and its caller computes the same in plain torch. No method depends on this package; README.md says what it gains, what
agrees to the bit and what to rounding, and how it is switched off.

    FEDHET_NATIVE=off    the environment variable with which every function here declines
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from mmap import mmap

    from torch import Tensor, nn

    from fedhet.types import Batch, IndexedBatches

SWITCH = "FEDHET_NATIVE"
"""Environment variable: "off", or "on", which is what it is if it is not set."""

SharedSum = Callable[[int, int, Sequence[int], Sequence[float]], None]
"""sum(out, size, rows, coefficients): places in bytes from the start of a memory, `size` in float32 numbers."""


class Stepper(Protocol):
    """Gradients and steps of plain gradient descent of one perceptron with the mean cross-entropy, on its parameters.

    A batch is inputs (n, ...), of the parameters' dtype, with classes (n,), int64, or with each class's share in a
    sample, (n, classes). A loss is the mean over the batch before the step, detached.
    """

    @property
    def size(self) -> int:
        """Number of parameters, in the order weight, bias of each layer."""
        ...

    def fits(self, x: Tensor) -> bool:
        """Whether inputs can be taken: right dtype, contiguous, nobody asks for their gradient."""
        ...

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the gradient into the parameters' `grad`, with autograd's bits; the loss, shape (). Classes only."""
        ...

    def descend(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        """Take one step of length `rate`; the loss, shape ()."""
        ...

    def descend_all(self, batches: Sequence[Batch], rate: float) -> Tensor | None:
        """One step on each batch in order, with the bits of `descend`; the losses, (steps,). None, with nothing done,
        if some of them are not for compiled code."""
        ...


class BatchedStepper(Protocol):
    """Plain gradient descent of several perceptrons of one shape side by side, with the bits of each alone."""

    def begin(self, starts: Sequence[Tensor], deltas: Sequence[Tensor]) -> None:
        """Row c starts as `starts[c]`, (parameters,), which is only read; `finish` writes to `deltas[c]` by how much
        it has moved."""
        ...

    def descend_all(self, batches: Sequence[Sequence[Batch]], rate: float, *, last: bool = False) -> Tensor | None:
        """One step of row c on each of `batches[c]`; the losses before each, (rows, steps). None if these have to be
        done one by one; rows may have moved then. `last`: `finish` comes next."""
        ...

    def pick(self, picked: Sequence[IndexedBatches], rate: float) -> Tensor | None:
        """All steps of every row on samples that stay where they are; `finish` comes next. The losses, (rows, steps);
        None, with nothing done, if only batches can be taken."""
        ...

    def finish(self) -> None:
        """Write the deltas; the rows hold nothing afterwards."""
        ...


def sum_into(rows: Sequence[Tensor], coefficients: Sequence[float], out: Tensor) -> bool:
    """out = sum_i coefficients[i] * rows[i], vectors of one length, each term one fused multiply-add in that order.

    The bits are those of `out.zero_()` and `out.add_(rows[i], alpha=coefficients[i])`. Uses as many threads as torch.
    False, with nothing done, for sums that are small or not contiguous float32 on the CPU.
    """
    call = _found("weighted_sum", "weighted_sum")
    return not isinstance(call, str) and bool(call(rows, coefficients, out))


def stack_into(parts: Sequence[Tensor], out: Tensor, scales: Sequence[float] | None = None, *, dim: int) -> bool:
    """Fill `out` with matrices on top of each other (`dim` 0) or side by side (1), each times its scale.

    The bits are those of `torch.cat` of the products. False, with nothing done, for results that are small or not
    contiguous float32 on the CPU, and for parts that do not make up `out`.
    """
    call = _found("concatenate", "stack")
    return not isinstance(call, str) and bool(call(parts, out, scales, dim=dim))


def stepper(module: nn.Module) -> Stepper | None:
    """Steps of this module, on its parameters where they lie; their gradients must be laid out already.

    None for anything but an `nn.Sequential` of an `nn.Flatten` and trainable `nn.Linear` layers with biases and
    `nn.ReLU` between them, without hooks, on the CPU.
    """
    call = _found("mlp_gradient", "Perceptron")
    return None if isinstance(call, str) else cast("Stepper | None", call.of(module))


def batched_stepper(one: Stepper, count: int) -> BatchedStepper | None:
    """Room for `count` perceptrons like this one, which `stepper` gave. None if its parameters are not one vector."""
    call = _found("mlp_batched", "BatchedPerceptron")
    return None if isinstance(call, str) else cast("BatchedStepper | None", call.of(one, count))


def sum_library() -> str:
    """Path of the compiled sum, for `shared_sum` in a process without torch; empty if there is none."""
    call = _found("weighted_sum", "path")
    return "" if isinstance(call, str) else str(call())


def shared_sum(library: str, memory: mmap) -> SharedSum | None:
    """The sum of `sum_into` over vectors inside one memory, on one thread, without torch. None if there is none."""
    call = _found("shared_sum", "load")
    return None if isinstance(call, str) or not library else cast("SharedSum | None", call(library, memory))


def keep_freed_memory() -> bool:
    """Have the C library keep up to 256 MB that were freed, in this process and those it forks; whether it does."""
    call = _found("malloc", "keep")
    return not isinstance(call, str) and bool(call())


def backend(of: str) -> str:
    """What computes "mlp" (steps of small perceptrons), "sum" or "stack" here: "compiled", or "torch (WHY)" and, for
    perceptrons, "autograd (WHY)" without this package's modules. Looking may compile, once per machine.

    Only for "mlp" do results depend on it, in their last bits. Raises KeyError for another word.
    """
    call = _found(STATUS[of], "status")
    if isinstance(call, str):
        return f"{'autograd' if of == 'mlp' else 'torch'} ({call})"
    return str(call())


def status() -> Mapping[str, str]:
    """`backend` of everything, by the word for it."""
    return {of: backend(of) for of in STATUS}


STATUS: Mapping[str, str] = {"mlp": "mlp_sgd", "sum": "weighted_sum", "stack": "concatenate"}
"""The module that answers for each."""


@cache
def _found(module: str, name: str) -> Any:
    """Something in a module of this package; or why it is not there, as a str."""
    told = os.environ.get(SWITCH, "on")
    if told not in ("on", "off"):
        raise ValueError(f"{SWITCH}={told} must be on or off")
    if told == "off":
        return f"switched off by {SWITCH}=off"
    path = f"{__name__}.{module}"
    try:
        found = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith(f"{__name__}."):
            raise
        return f"there is no {error.name}"
    return getattr(found, name, f"there is no {path}.{name}")
