"""A model's tensors as a Flower app gives and takes them: `ArrayRecord(model.state_dict())`, or a list of arrays.

Names are matched, not positions. What travels (see `fedhet.model.flat_model.Model`) is taken into the model; buffers
that do not, such as a batch norm's count of batches, are set aside and are in the result as they were given, so that it
can be loaded strictly. Tied weights may be given under each of their names, or one. A list without names is read in the
order of `state_dict`, with or without the buffers that are set aside, or in that of the parameters and then the
buffers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor, nn

from fedhet.model.flat_model import Model

WHO = "initial_arrays"


@dataclass(frozen=True)
class Layout:
    """How an app names the model's tensors: its `keys`, the `names` of the tensors they stand for, and the values of
    those that do not travel."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    aside: Mapping[str, np.ndarray]

    def record(self, module: nn.Module) -> ArrayRecord:
        """The tensors of such a module as the app names them."""
        tensors = _tensors(module)
        taken = {n: self.aside[n] if n in self.aside else _copy(tensors[n]) for n in self.names}
        return ArrayRecord({key: Array(taken[n]) for key, n in zip(self.keys, self.names, strict=True)})


def install(record: ArrayRecord, model: Model) -> Layout:
    """Take an app's arrays into a model. Raises ValueError naming the first tensor that differs and how, with the
    nearest name; nothing is changed then."""
    tensors = _tensors(model.module)
    homes = _homes(model, tensors)
    unnamed = list(record) == [str(n) for n in range(len(record))] and not set(record) <= set(tensors)
    arrays = {key: _array(key, array) for key, array in record.items()}
    names = _in_order(list(arrays.values()), tensors, homes, model) if unnamed else list(record)
    given = dict(zip(names, arrays.values(), strict=True))
    _refuse_names(given, _saved(model.module), homes, tensors)
    for name, key in zip(names, record, strict=True):
        called = f"array {key} ({name})" if unnamed else name
        _refuse_value(called, given[name], tensors[name], travels=name in homes)
    first: dict[str, str] = {}
    for name in given:
        twin = first.setdefault(homes.get(name, name), name)
        if not np.array_equal(given[twin], given[name], equal_nan=True):
            raise ValueError(f"{WHO}: {twin} and {name} are one tensor in the model, and differ here")
    tree = model.tree()
    for home, name in first.items():
        if home in tree:
            tree[home].copy_(torch.from_numpy(given[name]))
    aside = {name: array for name, array in given.items() if name not in homes}
    if unnamed:
        return Layout(tuple(record), tuple(names), aside)
    whole = tuple(dict.fromkeys([*_saved(model.module), *given]))
    return Layout(whole, whole, aside)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """What `state_dict` holds, tied tensors under each name, and then the buffers it leaves out."""
    state = module.state_dict(keep_vars=True)
    return {name: state[name] for name in _saved(module)} | dict(module.named_buffers())


def _saved(module: nn.Module) -> list[str]:
    """The tensors of its `state_dict`: a module may have other things there."""
    return [name for name, value in module.state_dict().items() if isinstance(value, Tensor)]


def _homes(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The name under which a tensor travels, for each name of one that does."""
    own = {id(t): n for n, t in [*model.module.named_parameters(), *model.module.named_buffers()] if n in model.schema}
    return {name: own[id(tensor)] for name, tensor in tensors.items() if id(tensor) in own}


def _array(key: str, array: Array) -> np.ndarray:
    try:
        return np.array(array.numpy())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{WHO}: {key} is no array that can be read: {error}") from None


def _in_order(
    arrays: Sequence[np.ndarray], tensors: Mapping[str, Tensor], homes: Mapping[str, str], model: Model
) -> list[str]:
    """The names of arrays that come without. Raises ValueError if their number fits no order."""
    whole = _saved(model.module)
    orders = [whole, [name for name in whole if name in homes], list(model.schema)]
    fitting = [order for order in orders if len(order) == len(arrays)]
    if not fitting:
        raise ValueError(
            f"{WHO}: a list of {len(arrays)} arrays, and the model's state_dict has {len(whole)} tensors: "
            f"{', '.join(whole[:8])}{', ...' if len(whole) > 8 else ''}"
        )
    shapes = [array.shape for array in arrays]
    return next((o for o in fitting if [tuple(tensors[n].shape) for n in o] == shapes), fitting[0])


def _refuse_names(
    given: Mapping[str, np.ndarray], saved: Iterable[str], homes: Mapping[str, str], known: Mapping[str, Tensor]
) -> None:
    """Raises ValueError for a tensor that travels and is not given, or one that the model does not have."""
    there = {homes.get(name, name) for name in given}
    strange = [name for name in given if name not in known]
    for name in saved:
        if name in homes and homes[name] not in there:
            raise ValueError(f"{WHO} lack {name}, {_kind(known[name])}{_near(name, strange)}")
    if strange:
        left = [name for name in known if name not in given]
        raise ValueError(f"{WHO}: the model has no {strange[0]}{_near(strange[0], left or list(known))}")


def _refuse_value(called: str, array: np.ndarray, tensor: Tensor, *, travels: bool) -> None:
    """Raises ValueError for another shape or dtype than the model's, and for another value of what clients make
    themselves."""
    if array.shape != tuple(tensor.shape):
        raise ValueError(f"{WHO}: {called} has shape {array.shape}, the model's has {tuple(tensor.shape)}")
    if not travels and not isinstance(tensor, nn.Parameter):
        return
    kind = str(tensor.dtype).removeprefix("torch.")
    if str(array.dtype) != kind:
        raise ValueError(f"{WHO}: {called} is {array.dtype}, the model's is {kind}: convert it with .astype({kind!r})")
    if not travels and not np.array_equal(array, _copy(tensor), equal_nan=True):
        raise ValueError(
            f"{WHO}: {called} is frozen in the model and is not sent: the clients build it with the values of the "
            "configuration, which these are not"
        )


def _copy(tensor: Tensor) -> np.ndarray:
    return np.array(tensor.detach().numpy())


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _near(name: str, among: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, among, 1, 0.5)
    return f"; nearest: {near[0]}" if near else ""
