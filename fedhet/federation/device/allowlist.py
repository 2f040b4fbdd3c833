"""The allowlist of a device: which parts of a configuration from the server it builds.

A configuration names classes and functions, and building it calls them with arguments of the server's choice, which
without limits is remote code execution. Everything is checked before anything is imported, and the imports are checked
before anything is built:

1. Size and depth of the text are limited, and it has no interpolations: what is checked is what is built.
2. Every `_target_`, at any depth, is a public class or a model factory that is defined in the source of a module of
   `strategies`, `clients` or a package named by the owner. Names that a module imports do not count, nor do other
   functions: those read and write files, or start programs.
3. Every path is in a folder that the owner named, and every hub id, which is loaded from the network, is one that the
   owner named.
4. The imported object is the one that the source defines.

A refusal does not reveal what is on the device: its reader is the sender of the configuration.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.provenance import source_tree

PLUGIN_PACKAGES = ("strategies", "clients")
"""Packages of fedhet that contain only plug-ins and what these need."""
FEDHET_TARGETS = frozenset({"fedhet.engine.aggregator.Flat", "fedhet.hierarchy.aggregation.Hierarchical"})
"""Targets in `fedhet` itself that options under conf/ name."""
FACTORY_ARGUMENTS = frozenset({"input_shape", "classes"})
"""The keyword arguments with which a world calls a model factory (clients/models/build.py)."""
PATH_PARAMETERS = frozenset({"path", "hub", "tokenizer", "cache"})
"""Parameters that name a file, a folder or a hub id. Any other string with a path's characters is checked as one,
too."""
MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES = 1 << 20, 32, 20_000
"""Greatest size of a configuration in characters, its greatest depth in levels, and its greatest number of values."""
_DOTTED = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+", re.ASCII)
_SPECIAL = re.compile(r"_.*_")


@dataclass(frozen=True, slots=True)
class Allowlist:
    """What an owner allows in addition to fedhet's own plug-ins: packages, folders and hub ids."""

    packages: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    hubs: tuple[str, ...] = ()

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Allowlist:
        """Build the allowlist from a device's settings (client.json); the declared data path is one of the folders."""
        folders = [str(about.get("data") or ""), *about.get("folders", ())]
        absolute = tuple(
            name for name in folders if Path(name).is_absolute()
        )  # the base of a relative path is not known
        return cls(tuple(about.get("allow", ())), absolute, tuple(about.get("hubs", ())))

    def check(self) -> None:
        """Raises EnrollError E319 for a package that cannot be allowed or does not exist, and for a missing folder."""
        for package in self.packages:
            if package.partition(".")[0] in {*sys.stdlib_module_names, *source_tree.PACKAGES}:
                raise EnrollError("E319", f"--allow {package}: name a package with plug-ins of your own")
            if source_tree.source_of(package) is None:
                raise EnrollError("E319", f"--allow {package}: there is no such package for {sys.executable}")
        for folder in self.folders:
            if not Path(folder).exists():
                raise EnrollError("E319", f"--data {folder}: there is no such folder")

    def admit(self, text: str) -> dict[str, Any]:
        """Parse and check a configuration (JSON) and import the modules that it needs. Its paths are returned absolute,
        so that the checked file is the opened one.

        Raises EnrollError E213, or E214 for a path or a hub id; OriginError for mixed code trees.
        """
        source_tree.verify()  # the sources that are checked are those that are imported
        if len(text) > MAX_CHARACTERS:
            raise EnrollError("E213", f"it has {len(text)} characters, at most {MAX_CHARACTERS} are read")
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EnrollError("E213", f"it is not JSON: {type(error).__name__}") from None
        if not isinstance(given, dict):
            raise EnrollError("E213", "it is not a mapping of names to values")
        targets: dict[str, str] = {}
        cfg: dict[str, Any] = self._checked(given, [], iter(range(MAX_VALUES)), targets)
        for target, where in targets.items():
            self._check_source(target, where)
        for target, where in targets.items():
            _import_target(target, where)
        return cfg

    def _checked(self, node: Any, at: list[str], left: Iterator[int], targets: dict[str, str]) -> Any:
        """A copy of a node with absolute paths. Adds its targets, each with the dotted key where it is, to
        `targets`."""
        if len(at) > MAX_DEPTH or next(left, None) is None:
            raise EnrollError("E213", f"it is more than {MAX_DEPTH} levels deep or has more than {MAX_VALUES} values")
        if isinstance(node, dict):
            made = {}
            for key, value in node.items():
                _check_no_interpolation(key, at)
                if _SPECIAL.fullmatch(key):
                    _check_hydra_key(key, value, [*at, key])
                if key == "_target_":
                    targets.setdefault(value, ".".join(at) or "the configuration itself")
                    made[key] = value
                else:
                    made[key] = self._checked(value, [*at, key], left, targets)
            return made
        if isinstance(node, list):
            return [self._checked(value, [*at, str(n)], left, targets) for n, value in enumerate(node)]
        if isinstance(node, str):
            _check_no_interpolation(node, at)
            key = next((name for name in reversed(at) if not name.isdigit()), "")
            return self._allowed_path(node, at) if key in PATH_PARAMETERS or _looks_like_path(node) else node
        return node

    def _check_source(self, target: str, where: str) -> None:
        """Raises EnrollError E213 unless a source file defines the target as a plug-in. Imports nothing."""
        if target in FEDHET_TARGETS:
            return
        if not _DOTTED.fullmatch(target) or len(target) > 200:
            raise EnrollError("E213", f"{where}: {target[:100]!r} does not name a public class")
        module, _, name = target.rpartition(".")
        inside = [p for p in (*PLUGIN_PACKAGES, *self.packages) if f"{module}.".startswith(f"{p}.")]
        if not inside:
            raise EnrollError("E213", f"{where}: {target} is outside of what the device's owner allowed")
        source = source_tree.source_of(module)
        found = None if source is None else _definition(source, name)
        if found is None:
            raise EnrollError("E213", f"{where}: {target} is defined nowhere: no module of that name defines it itself")
        if isinstance(found, ast.FunctionDef) and not _is_factory(found, ours=inside[0] in PLUGIN_PACKAGES):
            raise EnrollError("E213", f"{where}: {target} is a function, and not a model factory")

    def _allowed_path(self, value: str, at: list[str]) -> str:
        """The absolute path of a file below one of the owner's folders, or a hub id that the owner named.

        A relative path is searched below each folder. No file outside of them is accessed: the path is compared as text
        before links are resolved, and again afterwards.
        """
        if value in self.hubs:
            return value
        given = Path(value)
        for folder in map(Path, self.folders):
            try:
                candidate, inside = Path(os.path.normpath(folder / given.expanduser())), folder.resolve()
                if candidate.is_relative_to(os.path.normpath(folder)) or candidate.is_relative_to(inside):
                    found = candidate.resolve()
                    if found.is_relative_to(inside) and (found.exists() or given.expanduser().is_absolute()):
                        return str(found)
            except (OSError, RuntimeError, ValueError):  # a link loop, an unknown user's home, a null byte
                continue
        reason = "is neither below a folder nor a hub id that the device's owner named"
        raise EnrollError("E214", f"{'.'.join(at)}={value[:100]!r} {reason}")


def _check_no_interpolation(text: str, at: list[str]) -> None:
    if "${" in text:
        raise EnrollError("E213", f"{'.'.join(at) or 'it'} has an interpolation, {text[:60]!r}: only values are taken")


def _check_hydra_key(key: str, value: Any, at: list[str]) -> None:
    """Raises EnrollError E213 unless this is one of Hydra's special keys with a value of its type."""
    fits = {
        "_target_": isinstance(value, str),
        "_partial_": isinstance(value, bool),
        "_recursive_": isinstance(value, bool),
        "_convert_": value in ("none", "partial", "object", "all"),
        "_args_": isinstance(value, list),
    }
    if not fits.get(key, False):
        raise EnrollError("E213", f"{'.'.join(at)} cannot be {str(value)[:60]!r}")


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or "\0" in text or text.startswith("~") or text in (".", "..")


def _is_factory(function: ast.FunctionDef, *, ours: bool) -> bool:
    """Whether a function takes the keyword arguments of a model factory; fedhet's own must take them as
    keyword-only."""
    named = [*function.args.kwonlyargs, *([] if ours else function.args.args)]
    return {one.arg for one in named} >= FACTORY_ARGUMENTS


@lru_cache(maxsize=256)
def _definition(source: Path, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The top-level class or function of this name in a source file; None if there is none."""
    if not source.is_file():
        return None
    try:
        body = source_tree.parsed(source.read_bytes()).body
    except (SyntaxError, ValueError):
        return None
    return next((n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), None)


def _import_target(target: str, where: str) -> None:
    """Import a target. Raises EnrollError E213 unless the object is the one that its source defines."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise EnrollError("E213", f"{where}: {target} cannot be imported: {type(error).__name__}") from None
    own = getattr(found, "__module__", None) == module and getattr(found, "__qualname__", None) == name
    if not own or not isinstance(found, type | FunctionType):
        raise EnrollError("E213", f"{where}: {target} is not what the source of {module} defines")
