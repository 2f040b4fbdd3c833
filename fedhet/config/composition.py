"""Composition of a configuration from overrides, and instantiation of its nodes, with Hydra and errors of our own.

An option of a group is a YAML file under conf/ or in a folder of the user's own; its `_target_` is a dotted path, so
there is no registry. The dotted path of a class can be given instead of an option's name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fedhet import former_names
from fedhet.config import overrides, targets
from fedhet.errors import ConfigError
from fedhet.provenance import plugin_code, source_tree

__all__ = ["ConfigError", "compose", "instantiate", "resolved", "transforms"]

METHOD = ("strategy", "schedule", "budget", "staleness", "space", "rule", "codec", "privacy", "optimizer", "work")
"""The axes of a method; a strategy chooses an option for each of the others."""
MAX_AUTO_WORKERS = 8
"""`workers: auto` starts one process a core, up to this many."""


def compose(texts: Sequence[str] = (), folder: Path | None = None) -> DictConfig:
    """Compose the configuration that `key=value` overrides select; `folder` contains further groups or options.

    Raises ConfigError for an unknown group, option or key, a value of a wrong type, and an override that does not
    parse."""
    source_tree.verify()
    texts = former_names.overrides(texts)
    parsed = overrides.parse(texts)
    for one in parsed:
        if one.is_sweep_override():
            raise ConfigError(f"{one.input_line!r} gives several values: use --multirun or `fedhet compare`")
    known = targets.register(parsed, options(folder))
    overrides.check_choices(parsed, known)
    chosen = [t for t, o in zip(texts, parsed, strict=True) if o.key_or_group in known]
    base = _compose(chosen, folder)
    overrides.check_values(parsed, base, known)
    return base if chosen == texts else _compose(texts, folder)


def note_replaced(cfg: DictConfig, choices: Mapping[str, Any], folder: Path | None = None) -> None:
    """Record in `cfg["replaced"]` which parts of its strategy were replaced; `choices` maps group to option."""
    usual = dict(_strategy_choices(str(choices["strategy"]), folder))
    others = [axis for axis in METHOD[1:] if choices.get(axis) != usual.get(axis)]
    cfg["replaced"] = [f"{axis}={choices[axis]}" for axis in others]


@lru_cache(maxsize=64)
def _strategy_choices(strategy: str, folder: Path | None) -> tuple[tuple[str, Any], ...]:
    return tuple(_composed([f"strategy={strategy}"], folder)[1].items())


def options(folder: Path | None = None) -> dict[str, list[str]]:
    """Every group with its options, including those of `folder`, which is added with its parent to the import path."""
    known = overrides.groups(source_tree.conf())
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder of configuration groups")
        source_tree.also(folder.resolve().parent, folder)
        for group, names in overrides.groups(folder).items():
            known[group] = sorted({*known.get(group, []), *names})
    return known


def _compose(texts: Sequence[str], folder: Path | None) -> DictConfig:
    cfg, choices = _composed(texts, folder)
    note_replaced(cfg, choices, folder)
    return cfg


def _composed(texts: Sequence[str], folder: Path | None) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration without the key `hydra`, and the chosen option of every group."""
    more = [f"hydra.searchpath=[{folder.resolve().as_uri()}]"] if folder is not None else []
    try:
        with initialize_config_dir(str(source_tree.conf()), version_base="1.3", job_name="fedhet"):
            cfg: DictConfig = hydra_compose("config", [*texts, *more], return_hydra_config=True)
            choices = dict(cfg.hydra.runtime.choices)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split("\nConfig search path")[0].split())) from None
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A resolved copy of plain types, ready to be saved: interpolations filled in, `workers: auto` as a number, and the
    hashes of external plug-ins.

    Raises ConfigError for a broken interpolation, a missing value, and a bad seed, target or number of workers.
    """
    try:
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no default: give {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from None
    plain.pop("hydra", None)
    _check_numbers(plain)
    workers = plain.get("workers", 0)
    if workers == "auto":
        plain["workers"] = min(MAX_AUTO_WORKERS, len(os.sched_getaffinity(0)))
    elif not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise ConfigError(f"workers={workers}: needs auto or a whole number, 0 for training in this process")
    if found := plugin_code.hashes(plain):
        plain["plugins"] = found
    return plain


def _check_numbers(plain: Mapping[str, Any]) -> None:
    """Raises ConfigError for a seed or a target out of range."""
    seed, target = plain.get("seed", 0), plain.get("target", 0.9)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed}: needs a whole number, 0 or more and below 2^63")
    stop = (plain.get("stop") or {}).get("target")
    for key, share in (("target", target), ("stop.target", stop)):
        if share is None and key == "stop.target":
            continue
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            hint = f"; did you mean {share / 100:g}?" if isinstance(share, int | float) and 1 < share <= 100 else ""
            raise ConfigError(f"{key}={share}: needs an accuracy above 0 and at most 1{hint}")


def _clients(_root_: DictConfig) -> int:
    """The resolver `${clients:}`: the number of clients of the fleet, also if its configuration does not state it."""
    stated = OmegaConf.select(_root_, "fleet.clients")
    if isinstance(stated, int):
        return stated
    fleet = OmegaConf.to_container(_root_["fleet"], resolve=True)
    return len(instantiate(fleet, "fleet").build(int(_root_["seed"])))


OmegaConf.register_new_resolver("clients", _clients, replace=True)


def instantiate(node: Any, key: str) -> Any:
    """Instantiate a node, nested nodes first. `key` is its dotted key in the configuration, for error messages.

    Raises ConfigError with the key if the target does not exist or rejects its values.
    """
    if not isinstance(node, Mapping | DictConfig) or "_target_" not in node:
        raise ConfigError(f"{key}: nothing to build, {node!r} has no _target_")
    try:
        return hydra_instantiate(node, _convert_="object")
    except InstantiationException as error:
        message, _, inner = str(error).partition("\nfull_key: ")
        where = ".".join(filter(None, (key, inner.strip()))).removeprefix("world.")
        cause = error.__cause__
        if cause is None:
            raise ConfigError(f"{where}: {' '.join(message.split())}") from error
        if message.startswith("Error locating target"):
            targets.locate(message.split(chr(39))[1], where)  # raises an error that names what there is
            raise ConfigError(f"{where}: cannot import {message.split(chr(39))[1]}: {_last(cause)}") from error
        if isinstance(cause, ValueError | TypeError | OSError):
            raise ConfigError(_with_key(where, _plain(cause), _inside(node, inner.strip()))) from cause
        raise cause from None


def transforms(node: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """The transforms of one slot in order: none for `{}`, one for a node, several for a mapping of names to nodes."""
    if not node:
        return ()
    if "_target_" in node:
        return (instantiate(node, key),)
    return tuple(instantiate(inner, f"{key}.{name}") for name, inner in node.items() if inner)


def _inside(node: Mapping[str, Any] | DictConfig, key: str) -> Mapping[str, Any]:
    """The mapping at a dotted key below `node`; `node` for an empty key, {} if there is no mapping."""
    found: Any = node
    for part in filter(None, key.split(".")):
        found = found.get(part) if isinstance(found, Mapping | DictConfig) else None
    return found if isinstance(found, Mapping | DictConfig) else {}


def _with_key(where: str, text: str, node: Mapping[str, Any]) -> str:
    """A part's error message with configuration keys: `alpha=-1 ...` becomes `partition.alpha=-1 ...`."""
    if re.match(r"\w+(\.\w+)+=", text):  # it names a complete key already
        return text
    if unknown := re.search(r"(\w+) got an unexpected keyword argument '(\w+)'", text):
        near = overrides.nearest(unknown[2], overrides.parameters(str(node.get("_target_", ""))) or ())
        return f"{where}.{unknown[2]}: {unknown[1]} has no parameter {unknown[2]!r}{near}"
    first = re.match(r"(\w+)=", text)
    return f"{where}.{text}" if first and first[1] in node else f"{where}: {text}"


def _plain(error: Exception) -> str:
    """A constructor's error message without `.__init__()`."""
    return str(error).replace(".__init__()", "") or type(error).__name__


def _last(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[-1] if str(error) else type(error).__name__
