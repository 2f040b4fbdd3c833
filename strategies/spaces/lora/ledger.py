"""Versions of the base weights: the server's steps, the difference for a device with an older version, and hashes.

A step of the base is, per layer, stacked factors of rank R or their compressed form of rank q. Server and device add
the same step and compute the same sum; each step rounds once from float64. Every payload has the SHA-256 of the weights
that the device must have after it, and the device refuses to train on others. A device with version v of a layer (d, k)
gets the smaller of:

    the steps since v, sum of min(R, q) (d + k) numbers;  the merged matrix, d k numbers

A device whose version the server does not know gets all weights. Steps that could never be the smallest are deleted, so
a state has at most d k numbers of them per layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedhet.numerics.tree import Schema, empty
from fedhet.types import Tree
from strategies.spaces.lora.factors import Pair, added, compress, incompressible
from strategies.spaces.lora.names import ADAPTED, FROZEN, PAST, STAMP, STILL, WHOLE, base_names, layer_of

WORDS = 16
"""A SHA-256 is stored as sixteen numbers below 65536, which are exact in float32 and float64."""


class WrongBase(ValueError):
    """A device's base weights are not those that the payload builds on."""


def fingerprint(base: Mapping[str, Tensor], still: bytes = b"") -> bytes:
    """SHA-256 of base weights with their names, in the order given; `still` is the known hash of the frozen ones."""
    moving = {name: leaf for name, leaf in base.items() if not name.startswith(FROZEN)}
    return _digest(moving, still or still_of(base))


def still_of(base: Mapping[str, Tensor]) -> bytes:
    """The hash of the frozen base weights, which the server computes once."""
    return _digest({name: leaf for name, leaf in base.items() if name.startswith(FROZEN)})


def _digest(leaves: Mapping[str, Tensor], before: bytes = b"") -> bytes:
    digest = hashlib.sha256(before)
    for name, leaf in leaves.items():
        digest.update(name.encode())
        digest.update(leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def first(settings: tuple[float, ...], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The leaves of this module in the first state, in addition to the base: its stamp and the frozen weights' hash."""
    kind, still = next(iter(base.values())).dtype, still_of(base)
    mark = torch.tensor(_words(still), dtype=torch.float64).to(kind)
    return {STAMP: _stamp(0, settings, fingerprint(base, still), kind), STILL: mark}


def _stamp(version: int, settings: tuple[float, ...], mark: bytes, kind: torch.dtype) -> Tensor:
    """Version, the settings both sides must share, and the hash of the base."""
    return torch.tensor([float(version), *settings, *_words(mark)], dtype=torch.float64).to(kind)


def _words(mark: bytes) -> list[float]:
    return [float(word) for word in np.frombuffer(mark, dtype="<u2")]


def _mark(words: Tensor) -> bytes:
    return words.double().numpy().astype("<u2").tobytes()


def version_of(tree: Tree) -> int:
    """The version of a state or payload."""
    return int(tree[STAMP][0])


def hash_of(tree: Tree) -> bytes:
    """The hash of the base weights in a state's or payload's stamp."""
    return _mark(tree[STAMP][-WORDS:])


def settings_of(tree: Tree) -> tuple[float, ...]:
    """The settings that server and device must share."""
    return tuple(float(x) for x in tree[STAMP][1:-WORDS])


def base_of(tree: Tree) -> dict[str, Tensor]:
    """The base weights in a tree, with their prefixes."""
    held = dict(tree.items())
    return {name: held[name] for name in base_names(held)}


def advance(
    state: Mapping[str, Tensor], steps: Mapping[str, Pair], whole: Mapping[str, Tensor], *, smallest: bool
) -> dict[str, Tensor]:
    """The base weights of the next version with its stamp and steps: all leaves of this module in a state.

    steps: the products to add, by layer. whole: increments of parameters sent in full. smallest: replace a stack by its
    compressed form where that is smaller and lossless.
    """
    version = version_of(state) + 1
    base = base_of(state)
    if not steps and not whole:  # the base and its hash do not change
        same = state[STAMP].clone()
        same[0] = version
        return {**base, STAMP: same, STILL: state[STILL]}
    weights = {ADAPTED + _weight(layer): layer for layer in steps}
    room = dict(empty(Schema.of({name: base[name] for name in weights})).items())
    forms: dict[str, Pair] = {}
    for name, leaf in base.items():
        if name in weights:
            layer = weights[name]
            forms[layer] = _smallest(steps[layer], leaf.numel()) if smallest else steps[layer]
            base[name] = added(leaf, forms[layer], room[name])
        elif name.startswith(WHOLE):
            base[name] = leaf + whole[name.removeprefix(WHOLE)].to(leaf.dtype)
    mark = fingerprint(base, _mark(state[STILL]))
    result = {**base, STAMP: _stamp(version, settings_of(state), mark, state[STAMP].dtype), STILL: state[STILL]}
    for layer, step in forms.items():
        result.update(_steps(state, layer, version, step, result[ADAPTED + _weight(layer)].numel(), smallest))
    return result


def _smallest(step: Pair, room: int) -> Pair:
    """A stack, or its lossless compressed form if that is smaller and the matrix of `room` numbers is not."""
    if step.size >= room or incompressible(step):
        return step
    small, _ = compress(step)
    return small if small.size < step.size else step


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _steps(
    state: Mapping[str, Tensor], layer: str, version: int, newest: Pair, room: int, smallest: bool
) -> dict[str, Tensor]:
    """The newest step and those before it, as far back as together they are smaller than the matrix."""
    kept: dict[str, Tensor] = {}
    if smallest and newest.size >= room:
        return kept
    total, at, step = newest.size, version, newest
    while True:
        left, right = _names(at, layer)
        kept[left], kept[right] = step.left, step.right
        at -= 1
        left, right = _names(at, layer)
        if left not in state:
            return kept
        step = Pair(state[left], state[right])
        total += step.size
        if total >= room:
            return kept


def _names(version: int, layer: str) -> tuple[str, str]:
    return f"{PAST}{version}/left/{layer}", f"{PAST}{version}/right/{layer}"


def deliver(state: Mapping[str, Tensor], held: int, *, moves: bool = True) -> dict[str, Tensor]:
    """The payload that takes a device from version `held` (-1: unknown) to the state's base, with the stamp.

    moves=False: only parameters sent in full ever change.
    """
    version = version_of(state)
    base = base_of(state)
    if held < 0 or held > version:
        return {**base, STAMP: state[STAMP]}
    sent: dict[str, Tensor] = {}
    for name, leaf in base.items():
        if name.startswith(FROZEN) or held == version or not (moves or name.startswith(WHOLE)):
            continue
        if name.startswith(WHOLE):
            sent[name] = leaf
            continue
        steps = [_names(v, layer_of(name)) for v in range(held + 1, version + 1)]
        if all(left in state for left, _ in steps):
            sent.update({n: state[n] for pair in steps for n in pair})
        else:
            sent[name] = leaf
    return {**sent, STAMP: state[STAMP]}


def receive(kept: Mapping[str, Tensor], payload: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A device's base weights after a payload, from those it stored, verified by the payload's hash.

    Raises WrongBase if the payload builds on weights that the device does not have, or if the hash differs.
    """
    sent = base_of(payload)
    if any(name.startswith(FROZEN) for name in sent) or not kept:
        base = sent
    else:
        base = {name: sent.get(name, leaf) for name, leaf in kept.items()}
        steps = sorted({int(n.split("/", 2)[1]) for n in payload if n.startswith(PAST)})
        for name, leaf in kept.items():
            for v in steps:
                left, right = _names(v, layer_of(name))
                if name.startswith(ADAPTED) and left in payload:
                    leaf = base[name] = added(leaf, Pair(payload[left], payload[right]))
    for found in (base, kept):  # the second if a device receives a payload again
        if found and fingerprint(found) == hash_of(payload):
            return dict(found)
    raise WrongBase(f"base: the weights here are not those of version {version_of(payload)}: send all weights")
