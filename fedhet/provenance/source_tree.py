"""One run, one code tree: where `fedhet`, `strategies`, `clients` and `conf` come from, and a hash of that code.

The three packages lie side by side under one root: the checkout's, a Flower bundle's, or, in an installed wheel, the
folder `_root` inside this package (so that no generic name reaches site-packages).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import threading
from functools import lru_cache
from pathlib import Path

from fedhet.errors import OriginError

PACKAGES = ("fedhet", "strategies", "clients")
_HERE = Path(__file__).resolve().parents[1]
_PARSING = threading.Lock()
_OWN: list[str] = []
"""Folders of the user's own that were put on the import path, for the processes that this one starts."""


@lru_cache(maxsize=1)
def root() -> Path:
    """The folder that holds strategies, clients and conf. Raises OriginError if there is none."""
    for folder in (_HERE.parent, _HERE / "_root"):
        if all((folder / name).is_dir() for name in ("strategies", "clients", "conf")):
            return folder
    raise OriginError(f"{_HERE} has no strategies, clients and conf beside or inside it: install fedhet again")


def conf() -> Path:
    """The folder of the configuration groups."""
    return root() / "conf"


def on_path() -> None:
    """Put the root first on the import path, so that a `strategies` found elsewhere does not come before ours."""
    folder = str(root())
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)


def also(*folders: Path) -> None:
    """Put folders with plug-ins of the user's own last on the import path, where they hide nothing."""
    for folder in map(str, (folder.resolve() for folder in folders)):
        if folder not in _OWN:
            _OWN.append(folder)
        if folder not in sys.path:
            sys.path.append(folder)
            source_of.cache_clear()


def python_path() -> str:
    """PYTHONPATH for processes that are to find what this one finds: our root, its own, and the user's folders."""
    return os.pathsep.join(filter(None, [str(root()), os.environ.get("PYTHONPATH", ""), *_OWN]))


@lru_cache(maxsize=1)
def verify() -> None:
    """Raises OriginError unless all three packages would be (or were) imported from where they belong."""
    found = {name: _folder(name) for name in PACKAGES}
    wanted = {"fedhet": _HERE, "strategies": root() / "strategies", "clients": root() / "clients"}
    if found != wanted:
        told = ", ".join(f"{name} from {found[name] or 'nowhere'}" for name in PACKAGES)
        raise OriginError(
            f"mixed code trees: {told}; expected strategies and clients in {root()}. "
            "Remove the other copy, or run from another folder"
        )


def _folder(package: str) -> Path | None:
    module = sys.modules.get(package)
    spec = module.__spec__ if module is not None else importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]).resolve() if places else None


@lru_cache(maxsize=4096)
def source_of(module: str) -> Path | None:
    """The file that holds a module's source; the folder of a package that has none; None if there is no such module.

    Nothing is imported: of a dotted name only the first part is looked up, and the rest as Python would, a package
    before a module of its name.
    """
    top, *rest = module.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):
        return None
    if top in PACKAGES:
        folders = [_HERE if top == "fedhet" else root() / top]
    else:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        if not rest and spec.origin is not None and spec.origin.endswith(".py"):
            return Path(spec.origin)
        folders = [Path(place) for place in spec.submodule_search_locations or ()]
    for folder in folders:
        place = folder.joinpath(*rest)
        for path in (place / "__init__.py", *([place.with_name(f"{place.name}.py")] if rest else [])):
            if path.is_file():
                return path
        if not rest and place.is_dir():
            return place
    return None


def parsed(source: bytes | str, name: str = "<unknown>") -> ast.Module:
    """The syntax tree of a module's source; `name` is its file, for what is said of errors. Raises SyntaxError.

    One at a time: Python 3.11 counts the depth of a tree in one place for all threads, and two that build trees at once
    end with a SystemError now and then (CPython issue 106905).
    """
    with _PARSING:
        return ast.parse(source, name)


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """SHA-256 over every Python file of the three packages, the same for a checkout, a bundle and a wheel.

    Travels with every job, so that a server and a client running different code are noticed. Raises OriginError.
    """
    verify()
    return hash_code({"fedhet": _HERE, "strategies": root() / "strategies", "clients": root() / "clients"})


def hash_code(trees: dict[str, Path]) -> str:
    """SHA-256 over names and contents of the Python files under each tree; caches and `_root` are left out."""
    total = hashlib.sha256()
    for name, folder in sorted(trees.items()):
        for path in sorted(folder.rglob("*.py"), key=lambda p: p.relative_to(folder).as_posix()):
            inside = path.relative_to(folder)
            if inside.parts[0] == "_root" or "__pycache__" in inside.parts:
                continue
            total.update(f"{name}/{inside.as_posix()}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
