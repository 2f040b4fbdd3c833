"""Output of commands: one JSON object or lines of text; an error ends the command with its exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedhet.display import shown, shown_json
from fedhet.errors import InputError
from fedhet.federation.common.errors import EnrollError, unwritable

PATH_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


@contextmanager
def spoken(as_json: bool) -> Iterator[None]:
    """Context manager: print an EnrollError as a line or a JSON object, and raise typer.Exit with its exit code.

    An InputError ends any command with 2 and its line; as JSON it has the code E319. A path that cannot be used becomes
    E317, a disk that cannot be written E321.
    """
    try:
        try:
            yield
        except PATH_ERRORS as error:
            raise EnrollError("E317", f"{error.filename}: {error.strerror}") from None
        except Exception as error:
            full = unwritable(error)
            if full is None:
                raise
            raise full from None
    except InputError as error:
        if not as_json:
            raise
        print(shown_json({"error": EnrollError("E319", str(error)).to_dict()}, None))
        raise typer.Exit(2) from None
    except EnrollError as error:
        if as_json:
            print(shown_json({"error": error.to_dict()}, None))
        else:
            print(f"error: {error.line}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def say(as_json: bool, value: Any, *lines: str) -> None:
    """Print the value as JSON, or the lines with control characters escaped (fedhet/display.py)."""
    if as_json:
        print(shown_json(value))
    else:
        print("\n".join(map(shown, lines)))


def confirm(yes: bool, as_json: bool, *lines: str) -> None:
    """Print on standard error what is about to be done, and ask for confirmation unless `yes`.

    Raises EnrollError E325 if the answer is no, or if there is no terminal to ask at.
    """
    if not as_json:
        print("\n".join(map(shown, lines)), file=sys.stderr)
    if yes:
        return
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise EnrollError("E325", "; ".join(lines) if as_json else "there is no terminal to ask at", lines=list(lines))
    if not typer.confirm("Go on?", err=True):
        raise EnrollError("E325", "the answer was no")


def table_of(*columns: str) -> Table:
    """An empty table in the commands' style; its cells are made by `cells`."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def cells(*texts: object) -> Iterator[Text]:
    """Cells of a table, with control characters escaped and without markup."""
    return (Text(shown(text)) for text in texts)


def put(table: Table, width: int) -> None:
    """Print a table as wide as the terminal, or `width` characters without one."""
    console = Console()
    (console if console.is_terminal else Console(width=width)).print(table)
