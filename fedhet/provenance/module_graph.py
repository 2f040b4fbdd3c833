"""Modules that a configuration names, and what these import: read from their sources, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedhet.provenance import source_tree


def closure(names: Iterable[str], inside: Callable[[str], bool]) -> set[str]:
    """These modules, the packages around them and what they import, as far as the first part of a name is `inside`."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or not inside(name.partition(".")[0]) or file_of(name) is None:
            continue
        found.add(name)
        waiting += parents(name)
        waiting += imports(name)
    return found


def targets(part: Any) -> Iterator[str]:
    """Every `_target_` in a piece of configuration."""
    if isinstance(part, Mapping):
        if isinstance(part.get("_target_"), str):
            yield part["_target_"]
        for value in part.values():
            yield from targets(value)
    elif isinstance(part, list):
        for value in part:
            yield from targets(value)


def module_of(target: str) -> str | None:
    """The module of a dotted name of something inside one."""
    while target and file_of(target) is None:
        target = target.rpartition(".")[0]
    return target or None


def parents(name: str) -> list[str]:
    """The packages around a module, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def file_of(name: str) -> Path | None:
    """The source file of a module; None for what is none, or has none. Imports nothing."""
    path = source_tree.source_of(name)
    return path if path is not None and path.is_file() else None


def imports(name: str) -> Iterator[str]:
    """What a module imports: at its head, and, outside of the engine, inside of its functions, too."""
    path = file_of(name)
    assert path is not None
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _statements(syntax_tree(path), deep=not name.startswith("fedhet.")):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(node: ast.AST, deep: bool) -> Iterator[ast.AST]:
    """Everything that can be run: not what is there for type checkers alone; without `deep` no function's inside."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from _statements(other, deep)
            continue
        yield child
        if deep or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child, deep)


def syntax_tree(path: Path) -> ast.Module:
    """The parsed source of a file. Raises SyntaxError."""
    return source_tree.parsed(path.read_bytes(), str(path))
