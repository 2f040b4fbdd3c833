"""Files with keys and state: written atomically, and readable by their owner alone."""

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
    """Create a folder of mode 0700, or check the mode of an existing one. Raises EnrollError E305."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise EnrollError("E305", f"{path} has mode {mode:03o}, not 700")
    return path


@contextlib.contextmanager
def all_or_none(path: Path) -> Iterator[None]:
    """Context manager for creating the first files of a private folder: after an exception they are removed, and the
    folder too if it is new. Raises EnrollError E305."""
    before = set(path.iterdir()) if path.exists() else None
    private_folder(path)
    try:
        yield
    except BaseException:
        for made in set(path.iterdir()) - (before or set()):
            if made.is_file():
                made.unlink()
        if before is None:
            with contextlib.suppress(OSError):  # another process has put a file there
                path.rmdir()
        raise


def write_file(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Write a file atomically: temporary file, fsync, rename. A reader sees the old content or the new. Raises
    OSError."""
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


DOCUMENTATION_HINT = re.compile(r" See https|\s\(Background on")
"""The part of a library's error message that begins a reference to its documentation."""


@contextlib.contextmanager
def sound(path: Path) -> Iterator[None]:
    """Context manager for reading and parsing a file that fedhet wrote. Raises EnrollError E324 with its name if it is
    empty or cannot be parsed."""
    try:
        yield
    except EnrollError as error:
        if error.code != "E306" or str(path) in error.detail:
            raise
        raise EnrollError("E324", f"{path}: {error.detail}") from None
    except OperationalError:  # busy, or the disk is full: the file is not damaged
        raise
    except (ValueError, KeyError, TypeError, IndexError, YAMLError, DatabaseError) as error:
        empty = path.is_file() and not path.stat().st_size
        reason = "it is empty" if empty else " ".join(DOCUMENTATION_HINT.split(str(error))[0].split())[:160]
        raise EnrollError("E324", f"{path}: {reason or type(error).__name__}") from None


def read_private(path: Path) -> bytes:
    """The content of a private file. Raises EnrollError E306 if it is missing, E305 if others can read it."""
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        raise EnrollError("E306", f"{path} is missing") from None
    if mode & 0o077:
        raise EnrollError("E305", f"{path} has mode {mode:03o}, not 600")
    return path.read_bytes()
