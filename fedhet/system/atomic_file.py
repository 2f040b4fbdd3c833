"""Files that are whole or not there, and hashes that show whether they still are what was written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


class DamagedError(ValueError):
    """A file of a run that is gone, cut or altered; the message names it and the way out."""


OR_ANEW = "put it back from a copy, or start the run anew in another folder"
"""What can be done about a file that nothing else holds a copy of."""


def write(path: Path, data: bytes | memoryview) -> str:
    """A file, its bytes on the disk on return (its name with `sync_folder`); the SHA-256 of them in hex."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def sync_folder(path: Path) -> None:
    """The names in a folder are on the disk: what was made, renamed and deleted there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """The bytes of a file that somebody else wrote are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def digest(path: Path) -> str:
    """The SHA-256 of a file in hex. Raises DamagedError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror}): {OR_ANEW}") from None


def check(path: Path, sha256: str, otherwise: str = OR_ANEW) -> None:
    """Raises DamagedError unless the file's SHA-256 is this one."""
    found = digest(path)
    if found != sha256:
        raise DamagedError(
            f"{path} is not what the run wrote (SHA-256 {found[:12]}..., written {sha256[:12]}...): {otherwise}"
        )


def read(path: Path, sha256: str, otherwise: str = OR_ANEW) -> bytes:
    """A file's bytes. Raises DamagedError if it is gone, or its SHA-256 is not this one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror}): {otherwise}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DamagedError(
            f"{path} is not what the run wrote (SHA-256 {found[:12]}..., written {sha256[:12]}...): {otherwise}"
        )
    return data
