"""The command line. Commands import what they need when they run, so that `fedhet --help` answers at once.

Exit codes: 0 done, 1 a run failed, 2 bad input, 130 interrupted. Errors are one line on standard error.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer

from fedhet import former_names
from fedhet.cli import federation
from fedhet.display import shown_lines, shown_traceback
from fedhet.provenance import source_tree


def _groups() -> str:
    """The axes and their options, from the file names alone."""
    found: dict[str, list[str]] = {}
    for path in sorted(source_tree.conf().glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path.stem)
    return "\n\n".join(f"{axis}: {', '.join(names)}" for axis, names in found.items())


app = typer.Typer(
    name="fedhet",
    help="Federated learning for clients that are not alike. --debug anywhere shows tracebacks.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
fleet_app = typer.Typer(help="The clients of a run.", no_args_is_help=True)
partition_app = typer.Typer(help="How data are divided among clients.", no_args_is_help=True)
app.add_typer(fleet_app, name="fleet")
app.add_typer(partition_app, name="partition")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="An axis: rule=krum. A value: rule.f=2, seed=3.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
ConfigDir = Annotated[Path | None, typer.Option("--config-dir", help="A folder with more options for the axes.")]
Out = Annotated[Path | None, typer.Option("--out", help="The folder to write (default: a new one under out=runs).")]


@app.command(epilog=f"Axes and their options:\n\n{_groups()}")
def run(
    overrides: Overrides = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Sweep: seed=1,2,3, with Hydra's launcher.")
    ] = False,
    cfg: Annotated[str | None, typer.Option("--cfg", metavar="job", help="Print the configuration instead.")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: fill in interpolations.")] = False,
    resume: Annotated[Path | None, typer.Option("--resume", help="Continue the run in this folder.")] = None,
    out: Out = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Run one experiment; the last line printed is its folder."""
    from fedhet.cli import run as cli_run

    cli_run.run(overrides or [], multirun, cfg, resolve, resume, out, config_dir, json)


@app.command()
def compare(
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the comparison in this folder.")] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Run every combination of comma lists (strategy=fedavg,fedbuff seed=1,2) and print one table.

    Every run does equally many client tasks (stop.tasks=720) unless the overrides say where to stop. Run again with the
    same --out, finished runs are kept and unfinished ones continued.
    """
    from fedhet.cli import compare as cli_compare

    cli_compare.compare(overrides or [], out, resume, config_dir, json)


@app.command()
def demo(overrides: Overrides = None, out: Out = None, json: Json = False) -> None:
    """Compare FedAvg and asynchronous training on twelve unlike clients with real data, in under a minute."""
    from fedhet.cli import compare as cli_compare

    cli_compare.demo(overrides or [], out, json)


@app.command("list")
def list_(
    axis: Annotated[str | None, typer.Argument(help="One axis only.")] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Show every option of every axis, with one line on it and the papers behind it."""
    from fedhet.cli import show

    show.list_options(axis, config_dir, json)


@app.command()
def cite(overrides: Overrides = None, config_dir: ConfigDir = None) -> None:
    """Print BibTeX for exactly the parts of a method: fedhet cite strategy=fedbuff."""
    from fedhet.cli import show

    show.cite_method(overrides or [], config_dir)


@fleet_app.command("show")
def fleet_show(
    overrides: Overrides = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write an SVG here as well.")] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Print a table of a fleet: fedhet fleet show fleet=exponential fleet.clients=30."""
    from fedhet.cli import show

    show.fleet(overrides or [], picture, config_dir)


@partition_app.command("show")
def partition_show(
    overrides: Overrides = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write an SVG here as well.")] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Print who holds what: fedhet partition show partition=dirichlet partition.alpha=0.1."""
    from fedhet.cli import show

    show.partition(overrides or [], picture, config_dir)


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    client: Annotated[int, typer.Option("--client", help="A client's number.")],
    every: Annotated[bool, typer.Option("--all", help="All its jobs, not the first 20.")] = False,
) -> None:
    """Tell why a client got the work it got, from the record of a run."""
    from fedhet.cli import show

    show.explain_client(folder, client, every)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run or of a comparison.")],
) -> None:
    """Write the report of a finished run, or of a comparison, again."""
    from fedhet.cli import show

    show.rewrite(folder)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a finished run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Other data: data=mnist data.path=...", show_default=False),
    ] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Score a finished run's model, on the run's data or on others."""
    from fedhet.cli import use

    use.evaluate(folder, overrides or [], config_dir, json)


@app.command()
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
    """Write a finished run's model for use elsewhere: a peft adapter or whole weights, with a model card."""
    from fedhet.cli import use

    use.export(folder, overrides or [], kind, out, max_rank, config_dir)


@app.command()
def simulate(
    server: Annotated[str, typer.Argument(metavar="SERVERAPP", help="package.module:attribute or file.py:attribute")],
    client: Annotated[str, typer.Argument(metavar="CLIENTAPP", help="package.module:attribute or file.py:attribute")],
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Number of clients.")] = None,
    fleet: Annotated[str | None, typer.Option("--fleet", help="The fleet they come from, as in fleet=.")] = None,
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", help="key=value ... or a TOML file, as for `flwr run`.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps charged per train message.", min=1)] = 10,
    batch: Annotated[int, typer.Option("--batch", help="Samples per step.", min=1)] = 32,
    events: Annotated[Path | None, typer.Option("--events", help="Write one JSON line per message here.")] = None,
    json: Json = False,
) -> None:
    """Run an unchanged Flower app in virtual time on a fleet of unlike clients."""
    from fedhet.cli import simulate as cli_simulate

    cli_simulate.simulate(server, client, overrides or [], nodes, fleet, run_config or [], steps, batch, events, json)


@app.command()
def new(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="rule, schedule, space, transform, work, model, data or transport.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name on the command line: rule=NAME.")],
    into: Annotated[Path, typer.Option("--into", help="The folder to write into.", show_default=False)] = Path(),
) -> None:
    """Write a plug-in to begin with into your own folder: NAME.py, conf/AXIS/NAME.yaml and test_NAME.py, which run.

    The test holds it to all that fedhet's own parts are held to (fedhet.testing.conformance).
    """
    from fedhet.cli import new as cli_new

    cli_new.new(kind, name, into)


@app.command()
def bench(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A section: simulation, aggregation, decode, rules.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure this machine: simulated tasks, combining updates, opening payloads, rules; in under two minutes."""
    from fedhet.cli import bench as cli_bench

    cli_bench.bench(only or [], json)


@app.command()
def version() -> None:
    """Print the version, and those of the packages results depend on."""
    from fedhet.cli import show

    show.versions()


federation.mount(app)  # real clients: enrolment, serving, joining


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # nothing here phones anybody
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    source_tree.also(Path.cwd())  # plug-ins of the user's own, by dotted path
    former_names.as_notices()
    try:
        return int(app(given, standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        return _fail(f"{error.format_message()} (--help shows the options)", 2)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            sys.excepthook = shown_traceback
            raise
        from fedhet.errors import Interrupted, RunFailed

        if isinstance(error, Interrupted):
            return _fail(str(error), 130)
        if isinstance(error, RunFailed):
            return _fail(str(error), 1)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            where = f" for {error.filename}" if error.filename else ""
            return _fail(f"{error.strerror}{where}: free space or choose another folder, then try again", 1)
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(_of_path(error, given), 2)
        if isinstance(error, ValueError | OSError):
            return _fail(str(error), 2)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


def _of_path(error: OSError, given: Sequence[str]) -> str:
    """What the system says of a path, behind the option, key or argument that named it or a folder above it."""
    path, why = Path(str(error.filename)).absolute(), error.strerror or type(error).__name__
    for before, text in zip(["", *given], given, strict=False):
        key, equals, value = text.rpartition("=")
        if not equals and before.startswith("-"):
            key, equals = before, " "
        named = Path(value).expanduser().absolute() if value else None
        if named is not None and path.is_relative_to(named):
            return f"{key}{equals}{value}: {why}" + ("" if path == named else f": {path}")
    return f"{path}: {why}"


def _fail(message: str, code: int) -> int:
    print(f"error: {shown_lines(message)}", file=sys.stderr)
    return code
