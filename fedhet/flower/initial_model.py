"""A model's tensors in the form of a Flower app: `ArrayRecord(model.state_dict())`, or a list of arrays.

Tensors are matched by name, not by position. Those that are sent to clients (see `fedhet.model.flat_model.Model`) are
copied into the model; buffers that are not, such as a batch norm's count of batches, are stored and returned in the
result unchanged, so that it can be loaded strictly. Tied weights may be given under one or each of their names. A list
without names is read in the order of `state_dict`, with or without the unsent buffers, or parameters first and then
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
    """How an app names the model's tensors: the app's `keys`, the model's `names` of the same tensors, and the values
    of those that are not sent to clients (`unsent`)."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    unsent: Mapping[str, np.ndarray]

    def record(self, module: nn.Module) -> ArrayRecord:
        """The tensors of a module of this layout under the app's names."""
        tensors = _tensors(module)
        values = {n: self.unsent[n] if n in self.unsent else _copy(tensors[n]) for n in self.names}
        return ArrayRecord({key: Array(values[n]) for key, n in zip(self.keys, self.names, strict=True)})


def install(record: ArrayRecord, model: Model) -> Layout:
    """Copy an app's arrays into a model. Raises ValueError naming the first tensor that differs and how, with the
    nearest name; the model is unchanged then."""
    tensors = _tensors(model.module)
    sent = _sent_names(model, tensors)
    unnamed = list(record) == [str(n) for n in range(len(record))] and not set(record) <= set(tensors)
    arrays = {key: _array(key, array) for key, array in record.items()}
    names = _in_order(list(arrays.values()), tensors, sent, model) if unnamed else list(record)
    given = dict(zip(names, arrays.values(), strict=True))
    _check_names(given, _saved(model.module), sent, tensors)
    for name, key in zip(names, record, strict=True):
        label = f"array {key} ({name})" if unnamed else name
        _check_value(label, given[name], tensors[name], is_sent=name in sent)
    first: dict[str, str] = {}
    for name in given:
        other = first.setdefault(sent.get(name, name), name)
        if not np.array_equal(given[other], given[name], equal_nan=True):
            raise ValueError(f"{WHO}: {other} and {name} are one tensor in the model, and differ here")
    tree = model.tree()
    for leaf, name in first.items():
        if leaf in tree:
            tree[leaf].copy_(torch.from_numpy(given[name]))
    unsent = {name: array for name, array in given.items() if name not in sent}
    if unnamed:
        return Layout(tuple(record), tuple(names), unsent)
    everything = tuple(dict.fromkeys([*_saved(model.module), *given]))
    return Layout(everything, everything, unsent)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of `state_dict`, tied ones under each name, and then the buffers that it omits."""
    state = module.state_dict(keep_vars=True)
    return {name: state[name] for name in _saved(module)} | dict(module.named_buffers())


def _saved(module: nn.Module) -> list[str]:
    """The names of the tensors in `state_dict`; a module may have other values there."""
    return [name for name, value in module.state_dict().items() if isinstance(value, Tensor)]


def _sent_names(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name of a tensor that is sent to clients, the name it is sent under."""
    own = {id(t): n for n, t in [*model.module.named_parameters(), *model.module.named_buffers()] if n in model.schema}
    return {name: own[id(tensor)] for name, tensor in tensors.items() if id(tensor) in own}


def _array(key: str, array: Array) -> np.ndarray:
    try:
        return np.array(array.numpy())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{WHO}: {key} is not a readable array: {error}") from None


def _in_order(
    arrays: Sequence[np.ndarray], tensors: Mapping[str, Tensor], sent: Mapping[str, str], model: Model
) -> list[str]:
    """The names of arrays that have none. Raises ValueError if their number matches no order."""
    saved = _saved(model.module)
    orders = [saved, [name for name in saved if name in sent], list(model.schema)]
    fitting = [order for order in orders if len(order) == len(arrays)]
    if not fitting:
        raise ValueError(
            f"{WHO}: a list of {len(arrays)} arrays, and the model's state_dict has {len(saved)} tensors: "
            f"{', '.join(saved[:8])}{', ...' if len(saved) > 8 else ''}"
        )
    shapes = [array.shape for array in arrays]
    return next((o for o in fitting if [tuple(tensors[n].shape) for n in o] == shapes), fitting[0])


def _check_names(
    given: Mapping[str, np.ndarray], saved: Iterable[str], sent: Mapping[str, str], known: Mapping[str, Tensor]
) -> None:
    """Raises ValueError if a tensor that is sent to clients is missing, or if the model has no tensor of a name."""
    present = {sent.get(name, name) for name in given}
    unknown = [name for name in given if name not in known]
    for name in saved:
        if name in sent and sent[name] not in present:
            raise ValueError(f"{WHO} lack {name}, {_kind(known[name])}{_near(name, unknown)}")
    if unknown:
        left = [name for name in known if name not in given]
        raise ValueError(f"{WHO}: the model has no {unknown[0]}{_near(unknown[0], left or list(known))}")


def _check_value(label: str, array: np.ndarray, tensor: Tensor, *, is_sent: bool) -> None:
    """Raises ValueError for a shape or dtype other than the model's, and for another value of a frozen parameter, which
    clients build themselves."""
    if array.shape != tuple(tensor.shape):
        raise ValueError(f"{WHO}: {label} has shape {array.shape}, the model's has {tuple(tensor.shape)}")
    if not is_sent and not isinstance(tensor, nn.Parameter):
        return
    kind = str(tensor.dtype).removeprefix("torch.")
    if str(array.dtype) != kind:
        raise ValueError(f"{WHO}: {label} is {array.dtype}, the model's is {kind}: convert it with .astype({kind!r})")
    if not is_sent and not np.array_equal(array, _copy(tensor), equal_nan=True):
        raise ValueError(
            f"{WHO}: {label} is frozen in the model and is not sent: the clients build it with the values of the "
            "configuration, which these are not"
        )


def _copy(tensor: Tensor) -> np.ndarray:
    return np.array(tensor.detach().numpy())


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _near(name: str, among: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, among, 1, 0.5)
    return f"; nearest: {near[0]}" if near else ""
