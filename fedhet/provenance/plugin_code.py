"""The code of plug-ins from outside of fedhet: which modules a configuration names, and a hash of each.

A run keeps these hashes with its configuration (`plugins`), so that it goes on with the code that it began with. Hashed
are the modules that the configuration names and what these import from their own package, or, where they are files of a
folder of the user's own, from that folder. Libraries (torch, transformers, ...) count by their versions instead, which
result.json holds. Files are read and parsed; nothing is imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedhet.errors import InputError
from fedhet.provenance import device_code, module_graph, source_tree

_NAMES = """cryptography datasets fastapi flwr flwr_datasets hydra matplotlib numpy omegaconf pandas peft PIL pyarrow
ray safetensors scipy sklearn starlette tokenizers torch torchvision transformers"""
LIBRARIES = frozenset({*_NAMES.split(), *sys.stdlib_module_names, *source_tree.PACKAGES})
"""First parts of names that are no plug-ins from outside; those of fedhet itself have a hash of their own."""


class PluginError(InputError):
    """A plug-in from outside is not the one that a run began with."""


def hashes(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Module to hash, sorted by name, of everything from outside that a configuration names."""
    return _hashes(_modules(cfg))


def combined(plugins: Mapping[str, str]) -> str:
    """One fingerprint of fedhet's code and that of plug-ins from outside; fedhet's own where there are none."""
    own = source_tree.fingerprint()
    if not plugins:
        return own
    return hashlib.sha256(json.dumps([own, dict(plugins)], sort_keys=True).encode()).hexdigest()


def here(names: Iterable[str]) -> dict[str, str]:
    """The hashes that these modules have in this process's files: those of another machine may differ."""
    return _hashes(sorted(names))


def check(cfg: Mapping[str, Any]) -> None:
    """Raises PluginError if a configuration says which plug-ins it was made with, and they are others now."""
    before = cfg.get("plugins")
    if not isinstance(before, Mapping):
        return  # made by hand, or by a version that kept none
    now = {**here(before), **hashes(cfg)}
    for name in sorted({*before, *now}):
        if now.get(name) == before.get(name):
            continue
        file = module_graph.file_of(name)
        if file is None:
            what = (
                f"module {name} is not found: run from the folder that it lies in, give --config-dir, or set PYTHONPATH"
            )
        elif name not in before:
            what = f"module {name} ({file}) joined it: its plug-ins import more than they did"
        else:
            what = f"module {name} ({file}) was changed: put back what it was, or start another run"
        raise PluginError(f"the run's plug-ins are not those that it began with: {what}")


def _modules(cfg: Mapping[str, Any]) -> list[str]:
    named = [name for name in module_graph.targets(cfg) if name.partition(".")[0] not in LIBRARIES]
    tops = {name.partition(".")[0] for name in named}
    folders = {folder for top in tops if (folder := _folder(top)) is not None}

    def inside(top: str) -> bool:
        return top not in LIBRARIES and (top in tops or _folder(top) in folders)

    found = module_graph.closure(filter(None, map(module_graph.module_of, named)), inside)
    return sorted(found)


def _folder(top: str) -> Path | None:
    """The folder of the user's own that a module or package lies in; None if it is installed, or nowhere."""
    place = source_tree.source_of(top)
    if place is None:
        return None
    folder = (place.parent if place.name == "__init__.py" else place).parent.resolve()
    return None if folder in _installed() else folder


@lru_cache(maxsize=1)
def _installed() -> frozenset[Path]:
    paths = (Path(path) for name, path in sysconfig.get_paths().items() if name.endswith("lib"))
    return frozenset(path.resolve() for path in paths)


def _hashes(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        file = module_graph.file_of(name)
        if file is not None:
            found[name] = device_code.hash_file(file)
    return found
