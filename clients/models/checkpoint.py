"""Any model, initialised with the weights of a finished run or of a safetensors file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from clients.models.pretrained import CausalLanguageModel, SequenceClassifier
from fedhet.runs.result import Result


def checkpoint(*, input_shape: tuple[int, ...], classes: int, path: str, model: Callable[..., nn.Module]) -> nn.Module:
    """Any model with the weights of `path`: a finished run's folder or a safetensors file.

    Raises ValueError if there is no such file, or with the name of the first tensor that does not fit.
    """
    place = Path(path).expanduser()
    file = place / "model.safetensors" if place.is_dir() else place
    if not file.is_file():
        raise ValueError(f"model.path={path}: there is no {file}; name a finished run's folder or a safetensors file")
    if place.is_dir() and (place / "result.json").is_file():
        Result.read(place).check(file.name)
    try:
        held = safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise ValueError(f"model.path={path}: {file} is broken: {error}") from None
    module = model(input_shape=input_shape, classes=classes)
    own = module.state_dict()
    for name in [*own, *held]:
        if name not in held or name not in own:
            lacks = "the file" if name not in held else "the model"
            raise ValueError(f"model.path={path}: {lacks} has no tensor {name!r}; is model@model.model the same model?")
        if own[name].shape != held[name].shape:
            raise ValueError(
                f"model.path={path}: {name} has shape {tuple(held[name].shape)} in the file, "
                f"{tuple(own[name].shape)} in the model for these data"
            )
    module.load_state_dict(held)
    if isinstance(module, CausalLanguageModel | SequenceClassifier):
        module.source, module.new = None, frozenset()  # these weights are in no library's files
    return module
