"""The layers of a module that get adapters, by name patterns, with suggestions for a pattern that matches nothing."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

ALL = "all-linear"
"""The target for every linear layer."""


class Shape(NamedTuple):
    """A layer's weight as a matrix: d outputs, k inputs (times kernel elements). `transposed`: stored as (k, d)."""

    d: int
    k: int
    transposed: bool = False


def adaptable(module: nn.Module, targets: Sequence[str], exclude: Sequence[str] = ()) -> dict[str, Shape]:
    """The layers that `targets` choose, in the module's order.

    A target is "all-linear", a module's name, the end of its name after a dot, or a regular expression that matches
    the full name; `exclude` removes layers again. Linear layers, ungrouped convolutions and transformers' Conv1D can
    be adapted. Raises ValueError for a target that matches no such layer, with the nearest names, and if none is left.
    """
    inside = [n for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)]
    parameters = dict(module.named_parameters())
    fit: dict[str, Shape] = {}
    unfit: dict[str, str] = {}
    for name, part in module.named_modules():
        shape = _shape(part)
        if shape is None:
            unfit[name] = f"{type(part).__name__} has no adapter"
        elif any(name.startswith(f"{parent}.") for parent in inside):
            unfit[name] = "it lies in a MultiheadAttention, which reads its weight without calling it"
        elif parameter(name) not in parameters:
            unfit[name] = "its weight is shared with another layer, or frozen"
        else:
            fit[name] = shape
    chosen: set[str] = set()
    for target in targets:
        found = {n for n in fit if chooses(target, n) or (target == ALL and not _is_convolution(module, n))}
        if not found:
            raise ValueError(_nothing(target, fit, unfit))
        chosen |= found
    chosen -= {n for n in fit if any(chooses(pattern, n) for pattern in exclude)}
    if not chosen:
        raise ValueError(f"targets={list(targets)} without exclude={list(exclude)} leave no layer to adapt")
    return {n: s for n, s in fit.items() if n in chosen}


def _is_convolution(module: nn.Module, name: str) -> bool:
    """Whether the named part of a module is a convolution."""
    return isinstance(module.get_submodule(name), _ConvNd)


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that any pattern chooses. Raises ValueError for a pattern that chooses none, with the nearest names."""
    names = list(names)
    for pattern in patterns:
        if not any(chooses(pattern, n) for n in names):
            raise ValueError(f"{pattern!r} is no parameter of the model; {_near(pattern, names)}")
    return [n for n in names if any(chooses(p, n) for p in patterns)]


def chooses(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name: the name itself, its end after a dot, or a regular expression for all of it."""
    if name == pattern or name.endswith("." + pattern):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is neither a name nor a regular expression: {error}") from None


def parameter(name: str) -> str:
    """The name of a layer's weight."""
    return f"{name}.weight" if name else "weight"


def _shape(part: nn.Module) -> Shape | None:
    if isinstance(part, nn.Linear):
        return Shape(part.out_features, part.in_features)
    if isinstance(part, _ConvNd) and not isinstance(part, _ConvTransposeNd) and part.groups == 1:
        return Shape(part.out_channels, part.in_channels * math.prod(part.kernel_size))
    if type(part).__name__ == "Conv1D" and type(part).__module__ == "transformers.pytorch_utils":
        weight = part.get_parameter("weight")
        return Shape(weight.shape[1], weight.shape[0], transposed=True)
    return None


def _nothing(target: str, fit: Mapping[str, Shape], unfit: Mapping[str, str]) -> str:
    for name, why in unfit.items():
        if name and chooses(target, name):
            return f"target {target!r} matches {name!r}, which cannot be adapted: {why}; {_near(target, fit)}"
    return f"target {target!r} matches no layer of the model; {_near(target, fit)}"


def _near(word: str, names: Iterable[str]) -> str:
    names = list(names)
    ends = {n.rpartition(".")[2]: n for n in reversed(names)}
    close = difflib.get_close_matches(word, [*names, *ends], 5, 0.4)
    shown = list(dict.fromkeys(ends.get(c, c) for c in close)) or names[:5]
    return f"nearest: {', '.join(shown)}" if shown else "it has no layer that could be"
