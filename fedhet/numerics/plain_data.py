"""Plain data as JSON and back, keeping what JSON loses: tuples, sets, non-string keys, and records by class name.

Only classes from the modules a caller names are ever built, and only dataclasses: reading a file runs no code in it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def dump(value: Any) -> Any:
    """Numbers, strings, None, lists, tuples, sets, dicts and dataclasses of these, as JSON-able data."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [dump(v) for v in value]
    if isinstance(value, tuple):
        return {"$": "tuple", "of": [dump(v) for v in value]}
    if isinstance(value, (set, frozenset)):
        return {"$": "set", "of": [dump(v) for v in sorted(value)]}
    if isinstance(value, deque):
        return {"$": "deque", "of": [dump(v) for v in value]}
    if isinstance(value, dict):
        return {"$": "dict", "of": [[dump(k), dump(v)] for k, v in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$": type(value).__name__, "of": fields}
    raise TypeError(f"{type(value).__name__} is not plain data and cannot be saved: {value!r:.80}")


def load(data: Any, modules: Sequence[ModuleType]) -> Any:
    """The value `dump` was given. Raises ValueError for a class that none of the modules defines."""
    if isinstance(data, list):
        return [load(v, modules) for v in data]
    if not isinstance(data, dict):
        return data
    kind, of = data["$"], data["of"]
    if kind == "dict":
        return {load(k, modules): load(v, modules) for k, v in of}
    if kind in ("tuple", "set", "deque"):
        return {"tuple": tuple, "set": set, "deque": deque}[kind](load(v, modules) for v in of)
    for module in modules:
        cls = getattr(module, kind, None)
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            value = object.__new__(cls)
            for name, field in of.items():
                object.__setattr__(value, name, load(field, modules))
            return value
    raise ValueError(f"saved data names the class {kind!r}, which {[m.__name__ for m in modules]} do not define")


def fill(target: Any, data: Any, modules: Sequence[ModuleType]) -> None:
    """Put a dumped dataclass's fields into an existing object of that class."""
    if data["$"] != type(target).__name__:
        raise ValueError(f"saved {data['$']} cannot be put into a {type(target).__name__}")
    for name, value in data["of"].items():
        object.__setattr__(target, name, load(value, modules))
