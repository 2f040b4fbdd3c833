"""Loading a Flower app: its module, the project whose pyproject.toml names it, and its run configuration.

A run configuration has the same meaning as in Flower: TOML scalars, nested tables as dotted keys, or one file instead;
overrides replace values of the app's own `[tool.flwr.app.config]` and cannot add keys.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedhet.flower.compat import flat_config, parse_overrides

A = TypeVar("A", ServerApp, ClientApp)

PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")
"""A pair that Flower's parser accepts; it ignores any other text."""


class AppError(ValueError):
    """A `path:attribute` that names no Flower app, or a project that cannot be read."""


@dataclass(frozen=True)
class Project:
    """A folder with a pyproject.toml of a Flower app, and its run configuration, flattened."""

    folder: Path
    config: Mapping[str, Any]


def find_project(file: Path) -> Project | None:
    """The project of an app's file: the pyproject.toml in its folder, or the first above that names it as a component.

    Raises AppError if it is not TOML or if Flower would refuse its configuration.
    """
    file = file.resolve()
    for folder in file.parents:
        path = folder / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            app = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("flwr", {}).get("app")
            if isinstance(app, dict) and (folder == file.parent or _names(app, folder, file)):
                return Project(folder, flat_config(app.get("config")))
        except ValueError as error:  # TOMLDecodeError is one
            raise AppError(f"{path}: {error}") from None
    return None


def _names(app: Mapping[str, Any], folder: Path, file: Path) -> bool:
    for spec in app.get("components", {}).values():
        place = folder.joinpath(*str(spec).partition(":")[0].split("."))
        if file in (place.with_suffix(".py"), place / "__init__.py"):
            return True
    return False


def load_app(spec: str, kind: type[A]) -> A:
    """The app at `package.module:attribute` or `path/to/file.py:attribute`. Raises AppError naming what is missing."""
    return load(spec, kind)[0]


def load(spec: str, kind: type[A]) -> tuple[A, Project | None]:
    """An app with its project, if it has one. A file inside a package or a project is imported by its full name, as
    Flower does, so that its own imports work."""
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place:
        raise AppError(f"{spec!r}: write module:attribute or file.py:attribute")
    try:
        module = _file(spec, Path(place)) if place.endswith(".py") else _import(place, Path.cwd())
    except ModuleNotFoundError as error:
        raise AppError(f"{spec!r}: {error}") from None
    app = getattr(module, attribute, None)
    if not isinstance(app, kind):
        have = sorted(k for k, v in vars(module).items() if isinstance(v, kind))
        raise AppError(f"{spec!r} is no {kind.__name__}; {place} has {have or 'none'}")
    return app, find_project(Path(module.__file__)) if module.__file__ else None


def _file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise AppError(f"{spec!r}: there is no file {path}")
    path = path.resolve()
    project, root = find_project(path), path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    if project is not None:
        root = project.folder
    if root != path.parent:
        module = _import(".".join(path.relative_to(root).with_suffix("").parts), root)
        if module.__file__ is None or Path(module.__file__).resolve() != path:
            raise AppError(f"{spec!r}: another {module.__name__} is in the way, {module.__file__}")
        return module
    _on_path(root)
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    found.loader.exec_module(module)
    return module


def _import(name: str, root: Path) -> ModuleType:
    _on_path(root)
    return importlib.import_module(name)


def _on_path(root: Path) -> None:
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def parse_run_config(texts: str | Sequence[str]) -> dict[str, Any]:
    """Parse `key=value key=value`, or the name of a TOML file, as `flwr run --run-config` does. Raises ValueError for
    text that Flower refuses or would ignore."""
    given = [text for text in ([texts] if isinstance(texts, str) else texts) if text.strip()]
    if not given:
        return {}
    for text in given:
        rest = PAIR.sub("", text).split()
        if rest and not text.endswith(".toml"):
            raise ValueError(f"--run-config: {rest[0]!r} is not key=value")
    try:
        return parse_overrides(given)
    except (ValueError, OSError) as error:
        raise ValueError(f"--run-config {' '.join(given)!r}: {error}") from None


def run_config(project: Project | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The app's configuration with the overrides applied. Without a project every key is accepted.

    Raises ValueError for a key that the project does not have, naming the nearest.
    """
    if project is None:
        return dict(overrides)
    for key in overrides:
        if key not in project.config:
            near = difflib.get_close_matches(key, project.config, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(project.config)) or 'none'}"
            raise ValueError(f"--run-config: {project.folder / 'pyproject.toml'} gives no key {key!r}; {hint}")
    return {**project.config, **overrides}
