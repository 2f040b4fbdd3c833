"""Labels of the runs of a comparison: the overrides in which they differ, or the differences of their configurations.

`fedhet compare` and `fedhet run --multirun` record the overrides of each run (compare.json, sweep.json); for other
folders the resolved configurations are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedhet.report.errors import ReportError
from fedhet.report.run_reader import Row, document, text

NOT_THE_METHOD = frozenset({"seed", "workers", "out", "folder", "path", "name", "replaced", "plugins"})
"""Keys in which runs of one method may differ."""

RECORD_FILES = ("compare.json", "sweep.json")
MAX_LABEL = 120
"""Longest label, in characters."""

Overrides = Mapping[str, str]
"""The overrides of keys with several values: key to value as typed."""


def method_name(result: Row) -> str:
    """A run's method: its strategy and the parts that replace the strategy's."""
    return " + ".join([result.text("strategy", "run"), *result.texts("replaced")])


def labels(folders: Sequence[Path], strategies: Sequence[str]) -> list[str]:
    """A label for every run: its `method_name`, and the differences from other runs of that name."""
    typed = [swept(folder) for folder in folders]
    result = [""] * len(folders)
    for name in dict.fromkeys(strategies):
        members = [k for k, other in enumerate(strategies) if other == name]
        known = [typed[k] for k in members]
        if all(one is not None for one in known):
            apart = [_joined(one) for one in _differing([one or {} for one in known])]
        else:
            apart = variants([text(folders[k] / "config.yaml") for k in members])
        for k, words in zip(members, apart, strict=True):
            result[k] = f"{name} · {words}" if words else name
    return result


def _differing(typed: Sequence[Overrides]) -> list[Overrides]:
    """Overrides without those common to all runs."""
    common = {pair for pair in typed[0].items() if all(pair in one.items() for one in typed)}
    return [{key: value for key, value in one.items() if (key, value) not in common} for one in typed]


def swept(folder: Path) -> Overrides | None:
    """The recorded overrides of this run of a comparison or sweep; None if there is no record."""
    for name in RECORD_FILES:
        path = folder.parent / name
        runs = document(path).data.get("runs") if path.is_file() else None
        texts = runs.get(folder.name) if isinstance(runs, Mapping) else None
        if isinstance(texts, list) and all(isinstance(one, str) for one in texts):
            pairs = (one.lstrip("+").partition("=") for one in texts)
            return {key: value for key, _, value in pairs}
    return None


def without_effect(rows: Sequence[Row]) -> list[str]:
    """A sentence for every key with values that lead to identical final weights in all runs."""
    typed = [swept(row.path.parent) for row in rows]
    found = []
    for key in dict.fromkeys(key for one in typed for key in one or {}):
        ends: dict[str, dict[tuple[tuple[str, str], ...], str]] = {}
        for row, one in zip(rows, typed, strict=True):
            if one is not None and key in one and row.text("weights_sha256"):
                others = tuple((k, v) for k, v in one.items() if k != key)
                ends.setdefault(one[key], {})[others] = row.text("weights_sha256")
        alike: dict[frozenset[tuple[tuple[tuple[str, str], ...], str]], list[str]] = {}
        for value, weights in ends.items():
            alike.setdefault(frozenset(weights.items()), []).append(value)
        found += [
            f"{key}={','.join(values)} had no effect: runs that differ in it alone ended with the same weights"
            for values in alike.values()
            if len(values) > 1
        ]
    return found


def variants(configs: Sequence[str]) -> list[str]:
    """The differences of each configuration from the others of its strategy; "" if all are equal."""
    flat = [dict(_flat(_parsed(config))) for config in configs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if len({one.get(key) for one in flat}) > 1]
    parts = {key.removesuffix("._target_") for key in keys if key.endswith("._target_")}
    names: dict[tuple[tuple[str, str | None], ...], str] = {}
    result = []
    for one in flat:
        mine = tuple((key, one.get(key)) for key in keys)
        if mine not in names:
            words = _joined(
                {key.removesuffix("._target_"): _short(key, value) for key, value in _pairs_to_name(mine, parts)}
            )
            names[mine] = words if words not in names.values() else f"{words} ({len(names) + 1})"
        result.append(names[mine])
    return result


def _pairs_to_name(mine: Iterable[tuple[str, str | None]], parts: set[str]) -> Iterable[tuple[str, str]]:
    """The pairs to name: for a part of another class only the class, not its values."""
    for key, value in mine:
        inside = any(key.startswith(f"{part}.") and key != f"{part}._target_" for part in parts)
        if value is not None and not inside:
            yield key, value


def _short(key: str, value: str) -> str:
    return value.rpartition(".")[2] if key.endswith("._target_") else value


def _joined(pairs: Overrides) -> str:
    words = [f"{key}={value}" for key, value in pairs.items() if key not in (*NOT_THE_METHOD, "strategy")]
    told = ", ".join(words)
    while len(told) > MAX_LABEL and len(words) > 1:
        words.pop()
        told = ", ".join(words) + ", ..."
    return told if len(told) <= MAX_LABEL else told[: MAX_LABEL - 3] + "..."


def _parsed(config: str) -> Any:
    try:
        return yaml.safe_load(config)
    except (yaml.YAMLError, RecursionError) as error:
        raise ReportError(f"a run's config.yaml is not YAML: {' '.join(str(error).split())}") from None


def _flat(node: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted keys and values as text, without the keys that are not the method's."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if str(key) not in NOT_THE_METHOD:
                yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, "null" if node is None else str(node)
