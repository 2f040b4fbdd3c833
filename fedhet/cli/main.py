"""The entry point `fedhet`. Commands import what they need when they run, so that `fedhet --help` is fast.

Exit codes: 0 success, 1 a run failed, 2 bad input, 130 interrupted; commands of a federation have the exit codes of
their errors. Errors are one line on standard error.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import typer

from fedhet import former_names
from fedhet.cli import experiments, federation, inspection
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


app.command("run", epilog=f"Axes and their options:\n\n{_groups()}")(experiments.run)
app.command("compare")(experiments.compare)
app.command("demo")(experiments.demo)
app.command("list")(inspection.list_)
app.command("cite")(inspection.cite)
fleet_app.command("show")(inspection.fleet_show)
partition_app.command("show")(inspection.partition_show)
app.command("explain")(inspection.explain)
app.command("report")(inspection.report)
app.command("evaluate")(inspection.evaluate)
app.command("export")(inspection.export)
app.command("simulate")(experiments.simulate)
app.command("new")(experiments.new)
app.command("bench")(experiments.bench)
app.command("version")(inspection.version)
federation.mount(app)  # real clients: enrolment, serving, joining


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # no telemetry
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    source_tree.also(Path.cwd())  # so that dotted paths find the user's own plug-ins
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
    except BrokenPipeError:  # the reader of a pipe, such as head, has ended
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
    """The system's message on a path, after the option, key or argument that named it, or a parent or child of it."""
    path, why = Path(str(error.filename)).absolute(), error.strerror or type(error).__name__
    for before, text in zip(["", *given], given, strict=False):
        key, equals, value = text.rpartition("=")
        if not equals and before.startswith("-"):
            key, equals = before, " "
        named = Path(value).expanduser().absolute() if value else None
        if named is not None and (path.is_relative_to(named) or named.is_relative_to(path)):
            return f"{key}{equals}{value}: {why}" + ("" if path == named else f": {path}")
    return f"{path}: {why}"


def _fail(message: str, code: int) -> int:
    print(f"error: {shown_lines(message)}", file=sys.stderr)
    return code
