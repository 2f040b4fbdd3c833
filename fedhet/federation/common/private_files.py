"""Files that hold keys and state: whole or not at all, and readable by their owner alone."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import DatabaseError, OperationalError
from yaml import YAMLError

from fedhet.federation.common.errors import EnrollError
from fedhet.system.atomic_file import sync_folder


def private_folder(path: Path) -> Path:
    """Make a folder of mode 0700, or check that an existing one is. Raises EnrollError E305."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise EnrollError("E305", f"{path} has mode {mode:03o}, not 700")
    return path


@contextlib.contextmanager
def all_or_none(path: Path) -> Iterator[None]:
    """Around making the first files of a private folder: if that fails, they are gone again, and so is the folder if
    it is new. Raises EnrollError E305."""
    before = set(path.iterdir()) if path.exists() else None
    private_folder(path)
    try:
        yield
    except BaseException:
        for made in set(path.iterdir()) - (before or set()):
            if made.is_file():
                made.unlink()
        if before is None:
            with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                path.rmdir()
        raise


def write_file(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Write by temporary file, fsync and rename; a reader sees the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


ADVICE = re.compile(r" See https|\s\(Background on")
"""Where libraries begin to point to their pages."""


@contextlib.contextmanager
def sound(path: Path) -> Iterator[None]:
    """Around reading and parsing a file of our own. Raises EnrollError E324 with its name if it is empty, or cut or
    altered so that it cannot be understood."""
    try:
        yield
    except EnrollError as error:
        if error.code != "E306" or str(path) in error.detail:
            raise
        raise EnrollError("E324", f"{path}: {error.detail}") from None
    except OperationalError:  # busy, or the disk is full: nothing is said of the file
        raise
    except (ValueError, KeyError, TypeError, IndexError, YAMLError, DatabaseError) as error:
        empty = path.is_file() and not path.stat().st_size
        told = "it is empty" if empty else " ".join(ADVICE.split(str(error))[0].split())[:160]
        raise EnrollError("E324", f"{path}: {told or type(error).__name__}") from None


def read_private(path: Path) -> bytes:
    """The content of a private file. Raises EnrollError E306 if it is missing, E305 if others can read it."""
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        raise EnrollError("E306", f"{path} is missing") from None
    if mode & 0o077:
        raise EnrollError("E305", f"{path} has mode {mode:03o}, not 600")
    return path.read_bytes()
