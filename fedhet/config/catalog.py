"""The catalogue of options: every option of every axis, found in conf/ and described by the docstring of its target.

Sources are parsed, not imported, so that listing is fast and works without optional packages.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedhet.config import composition
from fedhet.errors import ConfigError
from fedhet.provenance import source_tree

METHOD = composition.METHOD
WORLD = ("fleet", "data", "partition", "model", "attack", "transport", "aggregation", "debug")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True, slots=True)
class Entry:
    """One option of an axis. `targets` are the dotted paths in its file, `papers` the bibliography keys of its
    papers."""

    axis: str
    name: str
    about: str
    targets: tuple[str, ...]
    papers: tuple[str, ...]


def axes(folder: Path | None = None) -> list[str]:
    """The axes in display order, additional ones last."""
    known = composition.options(folder)
    first = [axis for axis in (*METHOD, *WORLD) if axis in known]
    return first + sorted(set(known) - set(first))


def entries(axis: str | None = None, folder: Path | None = None) -> list[Entry]:
    """Every option, or those of one axis. Raises ConfigError for an axis that does not exist."""
    known = composition.options(folder)
    if axis is not None and axis not in known:
        raise ConfigError(f"there is no axis {axis!r}{_hint(axis, known)}; there are {', '.join(axes(folder))}")
    chosen = axes(folder) if axis is None else [axis]
    return [_entry(_file(group, name, folder), group, name) for group in chosen for name in known[group]]


def _hint(word: str, known: Mapping[str, list[str]]) -> str:
    """A hint in brackets for an unknown axis: axes with an option of that name, or the nearest axis or option."""
    having = [axis for axis, names in known.items() if word in names]
    if having:
        return f" ({word} is an option of {', '.join(having)})"
    near = [axis for axis in known if len(word) > 2 and axis.startswith(word)]
    near = near or difflib.get_close_matches(word, known, 1, 0.6)
    if not near and difflib.get_close_matches(word, ("axis", "axes"), 1, 0.7):
        return ": `fedhet list` without a word shows every one"
    if not near:
        options = {name: axis for axis, names in known.items() for name in names}
        found = difflib.get_close_matches(word, options, 1, 0.75)
        return f" (nearest: {found[0]}, an option of {options[found[0]]})" if found else ""
    return f" (nearest: {near[0]})"


def _file(group: str, name: str, folder: Path | None) -> Path:
    inside = Path(group) / f"{name}.yaml"
    return next(p / inside for p in (folder, source_tree.conf()) if p is not None and (p / inside).is_file())


def _entry(path: Path, axis: str, name: str) -> Entry:
    text = path.read_text(encoding="utf-8")
    found = tuple(targets(OmegaConf.create(text)))
    comment = _comment(text)
    papers = dict.fromkeys(named(comment))
    for target in found:
        papers.update(dict.fromkeys(cited(target)))
    about = comment or (sentence(describe(found[0])) if found else "nothing" if name == "none" else "")
    return Entry(axis, name, about, found, tuple(papers))


def _comment(text: str) -> str:
    """The first sentence or line of the comment a file starts with, without Hydra's package line."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# ").rstrip())
    return sentence(" ".join(lines))


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a configuration node, outer ones first."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)  # interpolations are not resolved
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        yield str(node["_target_"])
    for inner in node.values():
        yield from targets(inner)


def describe(target: str) -> str:
    """The docstring of a dotted path's class or function, else of its module; "" if there is none."""
    module, name = target.rpartition(".")[::2]
    documents = docstrings(module)
    return documents.get(name) or documents.get("", "")


def cited(target: str) -> list[str]:
    """Bibliography keys of the papers in the docstring of a dotted path's target, else in that of its module."""
    module, name = target.rpartition(".")[::2]
    documents = docstrings(module)
    return named(documents.get(name, "")) or named(documents.get("", ""))


def named(text: str) -> list[str]:
    """Bibliography keys of the papers that a text names by arXiv number or title, each once."""
    found, line = ARXIV.findall(text), " ".join(text.split())
    found += [key for key, paper in bibliography().items() if "venue" in paper and paper["title"] in line]
    return list(dict.fromkeys(found))


@lru_cache(maxsize=1)
def bibliography() -> dict[str, Any]:
    """conf/bibliography.yaml: title, authors and year by arXiv number or another key."""
    loaded = OmegaConf.to_container(OmegaConf.load(source_tree.conf() / "bibliography.yaml"))
    return {str(key): paper for key, paper in loaded.items()} if isinstance(loaded, dict) else {}


@lru_cache(maxsize=512)
def docstrings(module: str) -> Mapping[str, str]:
    """Docstrings of a module (key "") and of its classes and functions; empty if the source is not found."""
    path = source_tree.root() / (module.replace(".", "/") + ".py")
    if not path.is_file():
        path = source_tree.root() / module.replace(".", "/") / "__init__.py"
    if not path.is_file():
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return {}
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return {}
        path = Path(spec.origin)
    tree = source_tree.parsed(path.read_bytes())
    found = {"": ast.get_docstring(tree) or ""}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = ast.get_docstring(node) or ""
    return found


def sentence(text: str) -> str:
    """The first sentence of a text, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    end = re.search(r"(?<!et al)(?<!e\.g)(?<!i\.e)\.(?=\s+[A-Z`(]|$)", paragraph)
    return paragraph[: end.start() if end else None].rstrip(":")
