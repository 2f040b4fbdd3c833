"""Export of a finished run's model: its complete weights, or the change made by training as a peft adapter.

The adapter is the difference between final and initial weights, factored layer by layer into low-rank matrices, so it
works for every method. All layers get one rank and a scaling of 1, as inference servers for many adapters require.
Modules whose change is not low-rank are saved completely (`modules_to_save`).
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import safetensors.torch
import torch
from torch import Tensor, nn

from fedhet.errors import InputError
from fedhet.numerics.low_rank import Factors, factored, padded
from fedhet.runs.saved_run import Finished, install

FLOAT32_EPSILON = 2.0**-23


@runtime_checkable
class Wraps(Protocol):
    """A module around a model that can save itself, such as one of transformers. `source` is the folder or hub id of
    its weights, None if they have another origin; `new` are the tensors that were initialised randomly instead."""

    pretrained: nn.Module
    source: str | None
    new: Collection[str]


@runtime_checkable
class Saves(Protocol):
    """Writes its configuration and weights to a folder."""

    def save_pretrained(self, folder: str) -> object: ...


@dataclass(frozen=True)
class Exported:
    """What was written. `base` is the hub id of an adapter's base model, or the file or folder with it next to the
    adapter; `ranks` are the layers' ranks before padding, `lost` their relative errors, `whole` the modules saved
    completely."""

    kind: str
    folder: Path
    base: str = ""
    rank: int = 0
    ranks: Mapping[str, int] | None = None
    lost: Mapping[str, float] | None = None
    whole: tuple[str, ...] = ()


def merged(done: Finished, first: nn.Module, out: Path) -> Exported:
    """Write the final weights, with the model's configuration if it can save itself. `first` is the initial model."""
    install(first, done.weights())
    inner = first.pretrained if isinstance(first, Wraps) else None
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(inner, Saves):
        inner.save_pretrained(str(out))
    else:
        safetensors.torch.save_file(_plain(first), out / "model.safetensors")
    return Exported("merged", out)


def adapter(done: Finished, first: nn.Module, out: Path, max_rank: int | None) -> Exported:
    """Write a folder for `PeftModel.from_pretrained`, with the initial weights next to it if they have no hub id.

    max_rank: the rank of every layer, smaller singular values are dropped; None: the largest rank of any layer.
    Raises InputError if no changed layer can have an adapter, or a changed weight cannot be represented.
    """
    before = _plain(first)
    after = done.weights()
    prefix, new = ("pretrained.", set(first.new)) if isinstance(first, Wraps) else ("", set())
    changed = [n for n in before if n not in after or not torch.equal(before[n], after[n])]
    install(copy.deepcopy(first), after)  # refuses weights of another model
    target = first.pretrained if isinstance(first, Wraps) else first
    layers, whole = _split(target, [n.removeprefix(prefix) for n in changed], new)
    versions = max(1, int(done.result.row["versions"]))
    found = {}
    for name in layers:
        full = f"{prefix}{name}.weight" if name else f"{prefix}weight"
        found[name] = _difference(target.get_submodule(name), before[full], after[full], versions, max_rank)
    rank = max_rank or max(f.rank for f in found.values())
    _write(target, found, whole, rank, {n.removeprefix(prefix): t for n, t in after.items()}, out)
    base = (first.source or "base") if isinstance(first, Wraps) else "base.safetensors"
    if not isinstance(first, Wraps):
        safetensors.torch.save_file(before, out / base)
    elif first.source is None and isinstance(first.pretrained, Saves):
        first.pretrained.save_pretrained(str(out / base))
    ranks, lost = ({n: getattr(f, what) for n, f in found.items()} for what in ("rank", "lost"))
    return Exported("adapter", out, base, rank, ranks, lost, tuple(sorted(whole)))


def _plain(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}


def _split(module: nn.Module, changed: Collection[str], new: Collection[str]) -> tuple[list[str], set[str]]:
    """Layers that can have an adapter and changed only in their weight, and modules that must be saved completely."""
    inside = [n + "." for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)]
    layers, whole = [], {n.rpartition(".")[0] for n in new}
    for name in changed:
        owner, _, leaf = name.rpartition(".")
        if (
            leaf == "weight"
            and _has_low_rank_adapter(module.get_submodule(owner))
            and not name.startswith(tuple(inside))
        ):
            layers.append(owner)
        else:
            whole.add(owner)
    layers = [n for n in layers if n not in whole]
    if "" in whole or any(w.startswith(tuple(inside)) for w in whole):
        bad = next(n for n in changed if n.rpartition(".")[0] == "" or n.startswith(tuple(inside)))
        raise InputError(f"the run changed {bad}, which no adapter can stand for: use --to merged")
    if not layers:
        if not whole:
            raise InputError("an adapter contains what training changed, and the run did not change any weight")
        raise InputError(
            "an adapter adds to the weight matrices of layers, and of every layer it changed this run trained "
            f"biases as well (layers by their names in the model: {', '.join(sorted(whole))}). Runs with low-rank "
            "adapters export so, such as strategy=flora; of this one write the whole weights: --to merged"
        )
    return layers, whole


def _has_low_rank_adapter(layer: nn.Module) -> bool:
    """Whether peft represents the layer's adapter as one low-rank product."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1
    return isinstance(layer, nn.Linear) or _transposed(layer)


def _transposed(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils"


def _difference(layer: nn.Module, before: Tensor, after: Tensor, versions: int, most: int | None) -> Factors:
    """The change of a layer's weight in low-rank factors; singular values at the level of rounding are dropped."""
    moved = after.double() - before.double()
    matrix = moved.T if _transposed(layer) else moved.flatten(1)
    size = float(after.double().square().mean().sqrt())
    floor = FLOAT32_EPSILON * size * (math.sqrt(matrix.shape[0]) + math.sqrt(matrix.shape[1])) * math.sqrt(versions)
    return factored(matrix, floor, most)


def _write(
    target: nn.Module, found: Mapping[str, Factors], whole: set[str], rank: int, after: Mapping[str, Tensor], out: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.utils import ModulesToSaveWrapper

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_targets(target, set(found)),
        modules_to_save=sorted(whole) or None,
        fan_in_fan_out=any(_transposed(target.get_submodule(n)) for n in found),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a Conv1D is stored transposed and others are not
        model = get_peft_model(copy.deepcopy(target), config)
    inner = model.base_model.model
    saved = {n for n, m in inner.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    if saved != whole:
        raise InputError(f"peft would save {sorted(saved)} whole instead of {sorted(whole)}: use --to merged")
    for name, factors in found.items():
        part, (left, right, _) = inner.get_submodule(name), padded(factors, rank)
        for which, values in ((part.lora_A, right), (part.lora_B, left)):
            weight = which["default"].weight
            weight.data.copy_(values.view(weight.shape))
    for name in whole:
        module_to_save = inner.get_submodule(name).modules_to_save["default"]
        module_to_save.load_state_dict(
            {n.removeprefix(name + "."): t for n, t in after.items() if n.startswith(name + ".")}
        )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(out), save_embedding_layers=False)


def _targets(module: nn.Module, wanted: set[str]) -> list[str] | str:
    """The shortest `target_modules` that matches exactly these layers: last parts, full names, or an expression."""
    names = [n for n, _ in module.named_modules()]
    for few in ({n.rpartition(".")[2] for n in wanted}, wanted):
        if {n for n in names if any(n == t or n.endswith("." + t) for t in few)} == wanted:
            return sorted(few)
    return "|".join(map(re.escape, sorted(wanted)))
