"""Commands that show things: list, cite, fleet show, partition show, explain, report, version."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedhet import __version__, native
from fedhet.config import catalog, citations, composition
from fedhet.display import shown_lines
from fedhet.errors import InputError
from fedhet.provenance import source_tree


def list_options(axis: str | None, folder: Path | None, as_json: bool) -> None:
    """`fedhet list`: every option, axis by axis."""
    found = catalog.entries(axis, folder)
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found], indent=1))
        return
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("axis", style="bold cyan", no_wrap=True)
    table.add_column("option", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    table.add_column("arXiv", no_wrap=True)
    before = ""
    for entry in found:
        if before and entry.axis != before:
            table.add_section()
        papers = "\n".join(p for p in entry.papers if p[0].isdigit())
        table.add_row("" if entry.axis == before else entry.axis, entry.name, Text(entry.about), papers)
        before = entry.axis
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def cite_method(texts: Sequence[str], folder: Path | None) -> None:
    """`fedhet cite`: BibTeX of a composed method."""
    cfg = composition.resolved(composition.compose(texts, folder))
    unknown = [paper for paper in citations.papers(cfg) if paper not in catalog.bibliography()]
    print(citations.bibtex(cfg))
    if unknown:
        print(f"note: title and authors of {', '.join(unknown)} are not in conf/bibliography.yaml", file=sys.stderr)


def fleet(texts: Sequence[str], picture: Path | None, folder: Path | None) -> None:
    """`fedhet fleet show`: a fleet as a table, with ranks if the budget chooses them; as SVG in `picture`."""
    from fedhet.config import factory

    _check_folder(picture)
    cfg = composition.resolved(composition.compose(texts, folder))
    clients = factory.fleet(cfg)
    _show("clients.fleet.show", "table", clients, factory.ranks(cfg, clients))
    _draw("clients.fleet.show", clients, picture)


def partition(texts: Sequence[str], picture: Path | None, folder: Path | None) -> None:
    """`fedhet partition show`: a summary of a partition; as SVG in `picture`."""
    from fedhet.config import factory

    _check_folder(picture)
    cfg = composition.resolved(composition.compose(texts, folder))
    world: Any = factory.world(cfg, len(factory.fleet(cfg)))
    _show("clients.data.show", "card", world.partition)
    _draw("clients.data.show", world.partition, picture)


def _function(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _show(module: str, name: str, *arguments: Any) -> None:
    Console().print(_function(module, name)(*arguments))


def _check_folder(picture: Path | None) -> None:
    """Raises InputError if the folder of a picture does not exist."""
    if picture is not None and not picture.parent.is_dir():
        raise InputError(f"--picture {picture}: there is no folder {picture.parent}")


def _draw(module: str, thing: Any, picture: Path | None) -> None:
    if picture is not None:
        picture.write_text(_function(module, "picture")(thing), encoding="utf-8")
        print(picture)


def explain_client(folder: Path, client: int, every: bool) -> None:
    """`fedhet explain`: a client's jobs, from the record of a run."""
    from fedhet.runs import explain
    from fedhet.runs.event_log import read_rows
    from fedhet.runs.result import Result

    events = folder / "events.jsonl"
    if not events.is_file():
        raise InputError(f"{folder} is not a run folder: it has no events.jsonl")
    if (folder / "result.json").is_file():
        Result.read(folder).check_all()
    story = explain.explain(read_rows(events), client)
    print(shown_lines(explain.text(story, len(story.jobs) if every else 20)))


def rewrite(folder: Path) -> None:
    """`fedhet report`: write report.html of a run, or comparison.html of a folder of runs. Raises InputError."""
    from fedhet.report import write_comparison, write_report
    from fedhet.runs.result import Result

    runs = sorted(path.parent for path in folder.glob("*/result.json"))
    if (folder / "result.json").is_file():
        Result.read(folder).check_all()
        print(write_report(folder))
    elif runs:
        for run in runs:
            Result.read(run).check_all()
        print(write_comparison(runs, folder / "comparison.html"))
    else:
        raise InputError(f"{folder} contains no finished run: there is no result.json")


def versions() -> None:
    """`fedhet version`: versions of fedhet, its source tree's hash, and the packages that results depend on."""
    print(f"fedhet {__version__} in {source_tree.root()}")
    print(f"code {source_tree.fingerprint()}")
    print(f"python {sys.version.split()[0]}")
    for name in ("flwr", "torch", "numpy", "peft", "hydra-core", "safetensors", "scikit-learn", "ray"):
        try:
            print(f"{name} {installed(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
    for of, words in native.status().items():
        print(f"{of} backend: {words}")
