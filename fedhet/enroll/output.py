"""How commands speak: one JSON object, or lines for a person; refusals end with the exit code of their error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from fedhet.enroll.errors import EnrollError
from fedhet.errors import InputError

PATHS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


@contextmanager
def spoken(as_json: bool) -> Iterator[None]:
    """Turn an EnrollError into its line or object, and into typer.Exit with its code.

    An input that makes no sense ends any command with 2 and its line; as an object it has the code E319. A path that
    cannot be used is E317.
    """
    try:
        try:
            yield
        except PATHS as error:
            raise EnrollError("E317", f"{error.filename}: {error.strerror}") from None
    except InputError as error:
        if not as_json:
            raise
        print(json.dumps({"error": EnrollError("E319", str(error)).to_dict()}))
        raise typer.Exit(2) from None
    except EnrollError as error:
        if as_json:
            print(json.dumps({"error": error.to_dict()}))
        else:
            print(f"error: {error.line}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def say(as_json: bool, value: Any, *lines: str) -> None:
    """The value as JSON, or the lines."""
    if as_json:
        print(json.dumps(value, indent=1))
    else:
        print("\n".join(lines))
