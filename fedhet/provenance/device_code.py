"""The code that a device's half of a method runs: which modules, and a hash of each that no comment changes.

A server and a device must agree on this code and on the form of their messages, and on nothing else: what neither
trains nor packs an update may differ. The modules are those that the configuration names for a device (its work, data,
model, space and every layer that does something before the wire), the engine's own that do a job, and what these import
from packages like them. Nothing is imported to find that out: files are read and parsed.

    hash(module) = SHA-256 of its syntax tree without docstrings and empty fields, which is the same for any Python
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedhet.provenance import module_graph, source_tree

PROTOCOL = 2
"""The form of jobs and answers (fedhet/flower/messages.py, fedhet/flower/client_handlers.py,
fedhet/flower/node_directory.py); one more with each that differs."""
CORE = ("fedhet.engine.client_runner", "fedhet.flower.messages", "fedhet.numerics.wire_format")
"""The engine's modules that do a job, whatever the method."""
AXES = ("world", "data", "partition", "model", "attack", "work", "space")
LAYERS = ("optimizer", "staleness", "privacy", "codec")
"""Of a device's configuration: what it uses, of its layers those that do something before the wire. It builds schedule,
rule and budget as well, and asks them nothing."""
MOST = 2000
"""Modules that are hashed at once."""
STARTED = time.time()
MISSING, CHANGED, CLOSED = "missing", "changed", "closed"
"""In place of a hash: there is no such module; its file is newer than this process, which runs an earlier one; the
device's owner does not let jobs use it."""


def modules(world: str) -> list[str]:
    """The modules of the device's half of a method, sorted, of what `Experiment.for_devices` gives."""
    return list(_modules(world))


def hashes(names: Iterable[str], *, running: bool = True) -> dict[str, str]:
    """A hash of each module, MISSING, or CHANGED: on a device, which is `running` for long, a file that is newer than
    its process may not be what it runs. A server has read its modules for this very run."""
    return {name: _hash(name, running) for name in list(names)[:MOST]}


def digest(world: str, *, running: bool = True) -> str:
    """One hash of protocol and code for a configuration: what travels with every answer."""
    text = json.dumps([PROTOCOL, hashes(modules(world), running=running)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def difference(ours: Mapping[str, str], theirs: Mapping[str, Any], protocol: object) -> str:
    """What a device with these hashes and this protocol has otherwise than we do; empty if nothing."""
    if protocol != PROTOCOL:
        told = f"protocol {protocol}" if type(protocol) is int else "a protocol from before there were numbers"
        return f"it speaks {told}, the server {PROTOCOL}"
    others = [name for name in sorted(ours) if theirs.get(name) != ours[name]]
    if not others:
        return ""
    told = ", ".join(map(_named, others[:4])) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    if closed := [name for name in others if theirs.get(name) == CLOSED]:
        package = closed[0].partition(".")[0]
        return f"E213: its owner does not let jobs use {_named(closed[0])}: fedhet client run --allow {package}"
    if all(theirs.get(name) == CHANGED for name in others):
        return f"its code was changed after it was started: {told}"
    return f"its code differs: {told}"


def _named(module: str) -> str:
    return module.replace(".", "/") + ".py"


@lru_cache(maxsize=4)
def _modules(world: str) -> tuple[str, ...]:
    cfg = json.loads(world)
    named = [name for axis in (*AXES, *LAYERS) for name in module_graph.targets(cfg.get(axis))]
    inside = frozenset({*source_tree.PACKAGES, *(name.partition(".")[0] for name in named)})
    layers = [name for axis in LAYERS for name in module_graph.targets(cfg.get(axis))]
    used = [name for axis in AXES for name in module_graph.targets(cfg.get(axis))] + [
        n for n in layers if _sends(n, inside)
    ]
    return tuple(
        sorted(module_graph.closure([*CORE, *filter(None, map(module_graph.module_of, used))], inside.__contains__))
    )


def _sends(target: str, inside: Collection[str]) -> bool:
    """Whether a layer has a device's half: it, or something of its kind that it builds on, defines `send`."""
    module = module_graph.module_of(target)
    beside = {name for name in inside if name != "fedhet"}  # the engine's own `send` is the identity
    modules = module_graph.closure([] if module is None else [module], beside.__contains__) - set(
        module_graph.parents(module or "")
    )
    trees = (module_graph.syntax_tree(path) for path in map(module_graph.file_of, modules) if path is not None)
    return any(isinstance(n, ast.FunctionDef) and n.name == "send" for tree in trees for n in ast.walk(tree))


@lru_cache(maxsize=4096)
def _hash(name: str, running: bool) -> str:
    path = module_graph.file_of(name)
    if path is None:
        return MISSING
    if running and name in sys.modules and path.stat().st_mtime > STARTED:
        return CHANGED
    return hash_file(path)


def hash_file(path: Path) -> str:
    """A hash of what a source file does; of its bytes if it does not parse."""
    try:
        return hash_source(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def hash_source(source: bytes | str) -> str:
    """A hash of what a module does: comments, docstrings and layout do not count, the version of Python neither."""
    total = hashlib.sha256()
    for word in _words(source_tree.parsed(source)):
        total.update(word.encode("utf-8", "surrogatepass") + b"\0")
    return total.hexdigest()[:32]


def _words(node: object) -> Iterator[str]:
    """A syntax tree as words. Fields that are empty are left out: each version of Python adds some."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for field, value in ast.iter_fields(node):
            if field == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                value = _without_docstring(value)
            said = isinstance(node, ast.Constant) and field == "value"  # None is a value, too
            if not said and (value is None or value == [] or field in ("ctx", "type_comment", "kind")):
                continue
            yield field
            yield from _words(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _words(item)
        yield "]"
    else:
        yield f"{type(node).__name__} {node!r}"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str
    )
    return body[1:] if documented else body
