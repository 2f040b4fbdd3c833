"""What a module holds beside the tensors that travel, put back before every job.

A process trains many clients with one module object. Trainable parameters and finite floating-point buffers come with
each job's payload. Whatever else a module changes in `forward` would carry over from one client to the next, and the
result would depend on which process trained whom. So before every job it is what it was when the model was built:

* integer, boolean and complex buffers (step counters, `num_batches_tracked`), buffers that are not finite (attention
  masks), and buffers that were None;
* attributes of modules that are not torch's own: numbers, strings, containers of these, arrays, tensors, and objects
  by identity; attributes that `forward` added are removed. Generators of random numbers are seeded anew for each job;
* the tensor objects themselves: a buffer that `forward` replaced (`self.mean = 0.9 * self.mean + ...`) is copied into
  the one that travels, and a gradient or parameter that was taken off the flat storage is put back on it.

Hooks and submodules are left alone: spaces put adapters there. What objects of other kinds hold inside is not seen;
`fedhet.runs.rehearsal` finds out by doing one job twice.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

INTERNAL = frozenset(nn.Module().__dict__) - {"training"}
"""Attributes of every module that torch keeps for itself."""

PLAIN = (type(None), bool, int, float, complex, str, bytes)
MISSING = object()

Put = Callable[[], None]


class ModuleState:
    """The state of `module` as it is now. `travels` are the buffers that come with a payload."""

    def __init__(self, module: nn.Module, travels: Iterable[Tensor]) -> None:
        ours = {id(b) for b in travels}
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor | None, str]] = []
        rest: dict[int, Tensor] = {}
        for prefix, part in module.named_modules():
            for name, buffer in part._buffers.items():
                self._places.append((part._buffers, name, buffer, f"{prefix}.{name}" if prefix else name))
                if buffer is not None and id(buffer) not in ours:
                    rest[id(buffer)] = buffer
        self._rest, self._first = list(rest.values()), [b.detach().clone() for b in rest.values()]
        self._own = [_Attributes(part) for part in module.modules() if not _torchs(part)]
        self._frozen = [(name, p, p._version) for name, p in module.named_parameters() if not p.requires_grad]

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Everything as it was. `seed` is for generators of random numbers that the module owns."""
        for held, name, buffer, _ in self._places:
            if held.get(name, MISSING) is not buffer:
                held[name] = buffer
        if self._rest:
            torch._foreach_copy_(self._rest, self._first)
        for number, own in enumerate(self._own):
            own.reset(seed + number)

    @torch.no_grad()
    def settle(self) -> None:
        """After training: buffers that were replaced are copied into those that travel.

        Raises ValueError for one that no longer has its shape, and for a frozen parameter that changed: the change
        would reach other clients.
        """
        for held, name, buffer, path in self._places:
            now = held.get(name)
            if buffer is None or now is buffer:
                continue
            if now is None or now.shape != buffer.shape:
                shape = "nothing" if now is None else f"shape {tuple(now.shape)}"
                raise ValueError(f"the module put {shape} in place of its buffer {path} of shape {tuple(buffer.shape)}")
            buffer.copy_(now)
            held[name] = buffer
        for path, parameter, version in self._frozen:
            if parameter._version != version:
                raise ValueError(
                    f"the module changes {path} in forward, a parameter that requires no gradient and is not sent: "
                    "register it as a buffer"
                )

    @torch.no_grad()
    def aside(self) -> Put:
        """Remember the state of now; the result puts it back, for a forward pass that must leave no trace."""
        if not (self._rest or self._own):
            return _nothing
        held = [b.clone() for b in self._rest]
        attributes = [dict(own.values) for own in self._own]

        def back() -> None:
            with torch.no_grad():
                for place, name, buffer, _ in self._places:
                    if place.get(name, MISSING) is not buffer:
                        place[name] = buffer
                if held:
                    torch._foreach_copy_(self._rest, held)
            for own, before in zip(self._own, attributes, strict=True):
                own.put(before)

        return back


class _Attributes:
    """The attributes of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.values = module.__dict__
        self._before = {k: v for k, v in self.values.items() if k not in INTERNAL}
        self._inside = [(v, kept) for v in self._before.values() if (kept := _copied(v)) is not None]
        self._random = [v for v in self._before.values() if isinstance(v, GENERATORS)]

    def reset(self, seed: int) -> None:
        self.put(self._before)
        for live, kept in self._inside:
            _restore(live, kept)
        for generator in self._random:
            _seed(generator, seed)

    def put(self, before: Mapping[str, Any]) -> None:
        """These attributes and no others, as objects."""
        values = self.values
        for name, value in before.items():
            if values.get(name, MISSING) is not value:
                values[name] = value
        for name in [n for n in values if n not in before and n not in INTERNAL]:
            del values[name]


GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed % (1 << 32))
    else:
        bits = generator.bit_generator
        bits.state = type(bits)(seed).state


def _copied(value: object) -> Any:
    """A copy to restore the inside of a value from; None where there is nothing inside, or nothing known of it."""
    if isinstance(value, Tensor):
        return value.detach().clone() if not isinstance(value, nn.Parameter) and value.is_leaf else None
    if isinstance(value, np.ndarray):
        return value.copy()
    return copy.deepcopy(value) if isinstance(value, (list, dict, set, deque)) and _simple(value) else None


def _simple(value: object) -> bool:
    if isinstance(value, dict):
        return all(_simple(v) for pair in value.items() for v in pair)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return all(map(_simple, value))
    return isinstance(value, PLAIN)


def _restore(live: Any, kept: Any) -> None:
    """Give a mutable value the content of its copy, in place: others may refer to it."""
    if isinstance(live, Tensor):
        live.detach().copy_(kept)
    elif isinstance(live, np.ndarray):
        live[...] = kept
    elif not _same(live, kept):
        fresh = copy.deepcopy(kept)
        live.clear()
        live.extend(fresh) if isinstance(live, (list, deque)) else live.update(fresh)


def _same(live: Any, kept: Any) -> bool:
    try:
        return bool(live == kept)
    except (TypeError, ValueError, RuntimeError):  # something was put inside that cannot be compared
        return False


def _torchs(module: nn.Module) -> bool:
    """Whether a module's class is torch's own: those keep what they change in buffers."""
    return type(module).__module__.startswith("torch.")


def _nothing() -> None: ...
