"""A finished run loaded from its folder: its configuration, its world, and its final model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import Tensor, nn

from fedhet import former_names
from fedhet.config import composition, factory, overrides
from fedhet.errors import InputError
from fedhet.model.flat_model import Model
from fedhet.runs.result import Result
from fedhet.world import Scores, World

AXES = ("data", "partition")
"""The axes that may differ from the run when its final model is used."""


@dataclass(frozen=True)
class Finished:
    """`cfg` is the run's resolved configuration, `result` its row and evaluations."""

    folder: Path
    cfg: Mapping[str, Any]
    result: Result

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """From a run folder. Raises InputError if it has no finished run, DamagedError if any file was altered."""
        for name in ("result.json", "config.yaml", "model.safetensors"):
            if not (folder / name).is_file():
                raise InputError(f"{folder} holds no finished run: there is no {name}")
        result = Result.read(folder)
        result.check_all()
        cfg: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))  # type: ignore[assignment]
        return cls(folder, former_names.current(cfg), result)

    def world(self, texts: Sequence[str] = (), folder: Path | None = None) -> World:
        """The run's world, or one of other data: `texts` are overrides of the axes data and partition.

        Raises ConfigError for other keys, for values that do not fit, and for data that cannot be loaded.
        """
        return factory.world(changed(self.cfg, texts, folder), int(self.result.row["clients"]))

    def model(self, world: World) -> Model:
        """A model that fits `world`, with the run's final weights. Raises InputError if they do not fit it."""
        model = world.model()
        install(model.module, self.weights())
        model.remember()
        return model

    def weights(self) -> dict[str, Tensor]:
        """The tensors of model.safetensors. Raises DamagedError if it was altered, InputError if it is not a
        safetensors file."""
        path = self.folder / "model.safetensors"
        self.result.check(path.name)
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is broken: {error}") from None

    def evaluate(self, world: World) -> Scores:
        """The final model's scores, on one thread as in the run: on the run's data the same bits as the run's own."""
        from fedhet.system.threads import one_thread

        with one_thread():
            return world.evaluate(self.model(world))


def changed(cfg: Mapping[str, Any], texts: Sequence[str], folder: Path | None = None) -> dict[str, Any]:
    """A run's configuration with overrides of data and partition; an axis that is chosen again loses its old values."""
    parsed = overrides.parse(texts)
    for one in parsed:
        if one.key_or_group.partition(".")[0] not in AXES:
            raise InputError(
                f"{one.input_line!r}: a finished run keeps its configuration; {' and '.join(AXES)} may change"
            )
    anew = {o.key_or_group for o in parsed} & set(AXES)
    inside = {t: o.key_or_group.partition(".")[0] in anew for t, o in zip(texts, parsed, strict=True)}
    fresh = composition.resolved(composition.compose([f"seed={cfg['seed']}", *(t for t in texts if inside[t])], folder))
    result = OmegaConf.create({**cfg, **{axis: fresh[axis] for axis in anew}})
    rest = [o for t, o in zip(texts, parsed, strict=True) if not inside[t]]
    overrides.check_values(rest, result, composition.options(folder))
    for one in rest:
        OmegaConf.update(result, one.key_or_group, one.value())
    plain: dict[str, Any] = OmegaConf.to_container(result)  # type: ignore[assignment]
    return plain


def install(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load all named tensors into a module. Raises InputError naming the first that does not fit."""
    own = module.state_dict()
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            lacks = "the run's model" if name not in weights else "the model for these data"
            raise InputError(f"{lacks} has no tensor {name!r}: both must come from one factory and one kind of data")
        if own[name].shape != weights[name].shape:
            raise InputError(
                f"{name} has shape {tuple(weights[name].shape)} in the run, these data need {tuple(own[name].shape)}: "
                "their inputs and classes must be those of the run"
            )
    module.load_state_dict(dict(weights))
