"""Classes given by dotted path instead of an option's name: located, described as an option, or a helpful error.

`rule=mine.NormWeighted` on a command line stands for an option whose file names that class and its parameters with
their defaults, so that `rule.power=2` works as with any other option.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override

from fedhet.errors import ConfigError

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
PRESETS = frozenset({"strategy", "debug"})
"""Groups whose options set other axes; a class cannot replace one."""
FACTORY_ARGUMENTS = frozenset({"input_shape", "classes"})
"""The keyword arguments with which a world calls a model factory."""
PLAIN_TYPES = (bool, int, float, str, type(None))


def register(parsed: Iterable[Override], known: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Register classes that are given instead of an option's name as options of their axes, for this process.

    Returns `known` with these options. Raises ConfigError with the part of the path that is missing.
    """
    found = {group: list(names) for group, names in known.items()}
    for one in parsed:
        group = one.key_or_group
        if group not in known or one.is_delete() or one.is_sweep_override():
            continue
        value = one.value()
        if not isinstance(value, str) or value in found[group] or not DOTTED.fullmatch(value):
            continue
        if group in PRESETS:
            raise ConfigError(f"{group}={value}: {group} sets several axes; give a class to one, as in rule={value}")
        ConfigStore.instance().store(group=group, name=value, node=node(group, value))
        found[group].append(value)
    return found


def node(axis: str, target: str) -> dict[str, Any]:
    """The contents of an option's file for this class: its target and the defaults of its parameters. Raises
    ConfigError."""
    made = locate(target, axis)
    if not callable(made):
        raise ConfigError(f"{axis}={target}: {target} is {type(made).__name__}, no class or function")
    parameters = _parameters(made)
    if axis != "model":
        return {"_target_": target, **{name: value for name, value in parameters.items() if _is_plain(value)}}
    takes = inspect.signature(made).parameters
    if not takes.keys() >= FACTORY_ARGUMENTS and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise ConfigError(
            f"{axis}={target}: a model is made by calling it with input_shape and classes, and it takes "
            f"({', '.join(takes)})"
        )
    own = {name: value for name, value in parameters.items() if name not in FACTORY_ARGUMENTS and _is_plain(value)}
    return {"_target_": target, "_partial_": True, **own}


def locate(target: str, key: str) -> Any:
    """The class or function at a dotted path. Raises ConfigError, which names what exists instead."""
    module, rest = _module(target, key)
    found: Any = module
    for n, name in enumerate(rest):
        if not hasattr(found, name):
            at = ".".join([module.__name__, *rest[:n]])
            raise ConfigError(f"{key}: {at} has no {name}{_available(found, name)}")
        found = getattr(found, name)
    return found


def _module(target: str, key: str) -> tuple[ModuleType, list[str]]:
    """Import the longest prefix of a dotted path that is a module; returns it and the remaining names."""
    parts, name = target.split("."), ""
    for n in range(1, len(parts) + 1):
        longer = ".".join(parts[:n])
        try:
            if longer not in sys.modules and importlib.util.find_spec(longer) is None:
                break
        except (ModuleNotFoundError, ValueError) as error:  # its parent is not a package
            if isinstance(error, ModuleNotFoundError) and not longer.startswith(str(error.name)):
                raise _broken(key, name, error) from error
            break
        except Exception as error:
            raise _broken(key, name or longer, error) from error
        name = longer
    if not name:
        raise ConfigError(
            f"{key}: {target} cannot be imported: there is no module {parts[0]!r} in the current folder, beside "
            "--config-dir or installed"
        )
    try:
        return import_module(name), parts[len(name.split(".")) :]
    except Exception as error:
        raise _broken(key, name, error) from error


def _broken(key: str, module: str, error: Exception) -> ConfigError:
    return ConfigError(f"{key}: module {module} cannot be imported: {type(error).__name__}: {error}")


def _available(found: Any, name: str) -> str:
    """A hint: the classes and functions of a module or class, and the one nearest to a name."""
    own = [
        n
        for n, value in vars(found).items()
        if not n.startswith("_") and callable(value) and getattr(value, "__module__", "") == found.__name__
    ]
    if isinstance(found, ModuleType) and hasattr(found, "__path__"):
        own += [one.name for one in pkgutil.iter_modules(found.__path__) if one.name not in own]
    if not own:
        return "; it defines no class or function"
    near = difflib.get_close_matches(name, own, 1, 0.6)
    some = ", ".join(own[:8]) + (", ..." if len(own) > 8 else "")
    return f"; it has {some}" + (f" (nearest: {near[0]})" if near and len(own) > 1 else "")


def _parameters(made: Any) -> dict[str, Any]:
    """Parameters with their defaults; "???", Hydra's mark for a mandatory value, for those without."""
    try:
        signature = inspect.signature(made)
    except ValueError:  # built in
        return {}
    factories = {}
    if dataclasses.is_dataclass(made):
        factories = {f.name: f.default_factory for f in dataclasses.fields(made)}
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        factory = factories.get(name, dataclasses.MISSING)
        if factory is not dataclasses.MISSING:
            found[name] = factory()
        else:
            found[name] = "???" if parameter.default is parameter.empty else parameter.default
    return found


def _is_plain(value: Any) -> bool:
    """Whether a configuration file can contain a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return isinstance(value, PLAIN_TYPES)
