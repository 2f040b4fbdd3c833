"""Commands that list options or read a run: list, cite, fleet, partition, explain, report, evaluate, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhet.cli.client import Json
from fedhet.cli.options import ConfigDir, Overrides


def list_(
    axis: Annotated[str | None, typer.Argument(help="One axis only.")] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Show every option of every axis, with one line on it and the papers behind it."""
    from fedhet.cli import show

    show.list_options(axis, config_dir, json)


def cite(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Print BibTeX for exactly the parts of a method: fedhet cite strategy=fedbuff."""
    from fedhet.cli import show

    show.cite_method(overrides or [], config_dir)


def fleet_show(
    overrides: Overrides = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write an SVG here as well.")] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Print a table of a fleet: fedhet fleet show fleet=exponential fleet.clients=30."""
    from fedhet.cli import show

    show.fleet(overrides or [], picture, config_dir)


def partition_show(
    overrides: Overrides = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write an SVG here as well.")] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Print which client has which data: fedhet partition show partition=dirichlet partition.alpha=0.1."""
    from fedhet.cli import show

    show.partition(overrides or [], picture, config_dir)


def explain(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    client: Annotated[int, typer.Option("--client", help="A client's number.")],
    every: Annotated[bool, typer.Option("--all", help="All its jobs, not the first 20.")] = False,
) -> None:
    """Explain why a client got the jobs that it got, from the record of a run."""
    from fedhet.cli import show

    show.explain_client(folder, client, every)


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run or of a comparison.")],
) -> None:
    """Write the report of a finished run, or of a comparison, again."""
    from fedhet.cli import show

    show.rewrite(folder)


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a finished run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Other data: data=mnist data.path=...", show_default=False),
    ] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Evaluate a finished run's model, on the run's data or on other data."""
    from fedhet.cli import use

    use.evaluate(folder, overrides or [], config_dir, json)


def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a finished run.")],
    kind: Annotated[str, typer.Option("--to", metavar="adapter|merged", help="What to write.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; absent or empty.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Where the run's data are now: data.path=...", show_default=False
        ),
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option("--max-rank", help="The rank of every layer, for servers of many adapters.", min=1)
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Write a finished run's model for use elsewhere: a peft adapter or complete weights, with a model card."""
    from fedhet.cli import use

    use.export(folder, overrides or [], kind, out, max_rank, config_dir)


def version() -> None:
    """Print the version, and those of the packages results depend on."""
    from fedhet.cli import show

    show.versions()
