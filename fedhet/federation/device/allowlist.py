"""What a device builds of a configuration that a server sends: no more than the device's owner allows.

A configuration names classes and functions, and building it calls them with arguments of the server's choice: without
a limit that is running any program. Everything is checked before anything is imported, and imports before anything is
built:

1. The text is small and flat, and has no interpolation left: what is checked is what is built.
2. Every `_target_`, at any depth, is a public class, or a model's factory, that the source of a module of `strategies`,
   `clients` or a package named by the owner defines by itself. Names that a module has imported from elsewhere are not
   its own, nor are other functions: those read and write files, or start programs.
3. Every path leads into a folder that the owner named, and every id on a hub, which is loaded from the network, is one
   that the owner named.
4. What was imported is what the source said.

A refusal does not say what lies on the device: it is read by whoever sent the configuration.
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

PLUGINS = ("strategies", "clients")
"""Packages of ours that hold nothing but plug-ins and what these need."""
OWN = frozenset({"fedhet.engine.aggregator.Flat", "fedhet.hierarchy.aggregation.Hierarchical"})
"""What the options under conf/ name in `fedhet` itself."""
FACTORY = frozenset({"input_shape", "classes"})
"""The keywords by which a world calls a model's factory (clients/models/build.py)."""
PLACES = frozenset({"path", "hub", "tokenizer", "cache"})
"""Parameters that name a file, a folder or an id on a hub. Any other text with a path's characters is one, too."""
LONGEST, DEEPEST, MOST = 1 << 20, 32, 20_000
"""Bytes, levels and values of a configuration that are looked at."""
_DOTTED = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+", re.ASCII)
_SPECIAL = re.compile(r"_.*_")


@dataclass(frozen=True, slots=True)
class Allowlist:
    """What an owner allows beside the plug-ins that come with fedhet: packages, folders and ids on a hub by name."""

    packages: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    hubs: tuple[str, ...] = ()

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Allowlist:
        """From a device's settings (client.json); the data that it declared are among its folders."""
        folders = [str(about.get("data") or ""), *about.get("folders", ())]
        absolute = tuple(name for name in folders if Path(name).is_absolute())  # what a relative one meant is not known
        return cls(tuple(about.get("allow", ())), absolute, tuple(about.get("hubs", ())))

    def check(self) -> None:
        """Raises EnrollError E319 for a package that cannot be allowed or is not there, and for a missing folder."""
        for package in self.packages:
            if package.partition(".")[0] in {*sys.stdlib_module_names, *source_tree.PACKAGES}:
                raise EnrollError("E319", f"--allow {package}: name a package with plug-ins of your own")
            if source_tree.source_of(package) is None:
                raise EnrollError("E319", f"--allow {package}: there is no such package for {sys.executable}")
        for folder in self.folders:
            if not Path(folder).exists():
                raise EnrollError("E319", f"--data {folder}: there is no such folder")

    def admit(self, text: str) -> dict[str, Any]:
        """The configuration in a text, its paths absolute, so that what was checked is what is opened. Every module
        that it needs is imported by now.

        Raises EnrollError E213, or E214 for a path or an id on a hub; OriginError for mixed code trees.
        """
        source_tree.verify()  # the sources that are read are those that are imported
        if len(text) > LONGEST:
            raise EnrollError("E213", f"it has {len(text)} characters, at most {LONGEST} are read")
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EnrollError("E213", f"it is no JSON: {type(error).__name__}") from None
        if not isinstance(given, dict):
            raise EnrollError("E213", "it is not a mapping of names to values")
        targets: dict[str, str] = {}
        cfg: dict[str, Any] = self._checked(given, [], iter(range(MOST)), targets)
        for target, where in targets.items():
            self._defined(target, where)
        for target, where in targets.items():
            _imported(target, where)
        return cfg

    def _checked(self, node: Any, at: list[str], left: Iterator[int], targets: dict[str, str]) -> Any:
        """A copy of a node with absolute paths; adds its targets and where they lie."""
        if len(at) > DEEPEST or next(left, None) is None:
            raise EnrollError("E213", f"it is more than {DEEPEST} levels deep or has more than {MOST} values")
        if isinstance(node, dict):
            made = {}
            for key, value in node.items():
                _plain(key, at)
                if _SPECIAL.fullmatch(key):
                    _special(key, value, [*at, key])
                if key == "_target_":
                    targets.setdefault(value, ".".join(at) or "the configuration itself")
                    made[key] = value
                else:
                    made[key] = self._checked(value, [*at, key], left, targets)
            return made
        if isinstance(node, list):
            return [self._checked(value, [*at, str(n)], left, targets) for n, value in enumerate(node)]
        if isinstance(node, str):
            _plain(node, at)
            key = next((name for name in reversed(at) if not name.isdigit()), "")
            return self._place(node, at) if key in PLACES or _like_a_path(node) else node
        return node

    def _defined(self, target: str, where: str) -> None:
        """Raises EnrollError E213 unless the target is a plug-in by its source. Imports nothing."""
        if target in OWN:
            return
        if not _DOTTED.fullmatch(target) or len(target) > 200:
            raise EnrollError("E213", f"{where}: {target[:100]!r} does not name a public class")
        module, _, name = target.rpartition(".")
        inside = [p for p in (*PLUGINS, *self.packages) if f"{module}.".startswith(f"{p}.")]
        if not inside:
            raise EnrollError("E213", f"{where}: {target} lies outside of what the device's owner allowed")
        source = source_tree.source_of(module)
        found = None if source is None else _definition(source, name)
        if found is None:
            raise EnrollError("E213", f"{where}: {target} is defined nowhere: no module of that name defines it itself")
        if isinstance(found, ast.FunctionDef) and not _is_factory(found, ours=inside[0] in PLUGINS):
            raise EnrollError("E213", f"{where}: {target} is a function, and no model's factory")

    def _place(self, value: str, at: list[str]) -> str:
        """The absolute path of what lies below a folder of the owner's, else an id that the owner named.

        A relative path is looked for below each folder. No file outside of them is looked at: the path is compared as
        text before links are followed, and again after.
        """
        if value in self.hubs:
            return value
        given = Path(value)
        for folder in map(Path, self.folders):
            try:
                whole, inside = Path(os.path.normpath(folder / given.expanduser())), folder.resolve()
                if whole.is_relative_to(os.path.normpath(folder)) or whole.is_relative_to(inside):
                    found = whole.resolve()
                    if found.is_relative_to(inside) and (found.exists() or given.expanduser().is_absolute()):
                        return str(found)
            except (OSError, RuntimeError, ValueError):  # a circle of links, no such user's home, a null byte
                continue
        told = "is neither below a folder nor an id on a hub that the device's owner named"
        raise EnrollError("E214", f"{'.'.join(at)}={value[:100]!r} {told}")


def _plain(text: str, at: list[str]) -> None:
    if "${" in text:
        raise EnrollError("E213", f"{'.'.join(at) or 'it'} has an interpolation, {text[:60]!r}: only values are taken")


def _special(key: str, value: Any, at: list[str]) -> None:
    """Raises EnrollError E213 unless this is one of Hydra's words with a value of its kind."""
    fits = {
        "_target_": isinstance(value, str),
        "_partial_": isinstance(value, bool),
        "_recursive_": isinstance(value, bool),
        "_convert_": value in ("none", "partial", "object", "all"),
        "_args_": isinstance(value, list),
    }
    if not fits.get(key, False):
        raise EnrollError("E213", f"{'.'.join(at)} cannot be {str(value)[:60]!r}")


def _like_a_path(text: str) -> bool:
    return "/" in text or "\\" in text or "\0" in text or text.startswith("~") or text in (".", "..")


def _is_factory(function: ast.FunctionDef, *, ours: bool) -> bool:
    """Whether it takes what a model's factory is called with; of ours, as keywords alone."""
    named = [*function.args.kwonlyargs, *([] if ours else function.args.args)]
    return {one.arg for one in named} >= FACTORY


@lru_cache(maxsize=256)
def _definition(source: Path, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The statement at the top of a file that defines a class or function of this name; None if there is none."""
    if not source.is_file():
        return None
    try:
        body = source_tree.parsed(source.read_bytes()).body
    except (SyntaxError, ValueError):
        return None
    return next((n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), None)


def _imported(target: str, where: str) -> None:
    """Import a target. Raises EnrollError E213 unless it is then what its source said."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise EnrollError("E213", f"{where}: {target} cannot be imported: {type(error).__name__}") from None
    own = getattr(found, "__module__", None) == module and getattr(found, "__qualname__", None) == name
    if not own or not isinstance(found, type | FunctionType):
        raise EnrollError("E213", f"{where}: {target} is not what the source of {module} defines")
