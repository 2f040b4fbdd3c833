"""Zip files for enrolment without a network: a device's request and the operator's signed answer."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError

DOMAIN = "fedhet.answer.v1"


MAX_MEMBER_BYTES = 1 << 20
"""Largest file in an archive, in bytes."""


def write(path: Path, members: Mapping[str, bytes]) -> None:
    """Write an archive atomically, readable by its owner alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    private_files.write_file(path, buffer.getvalue())


def read(path: Path, name: str) -> bytes:
    """Read one member by its exact name. Raises EnrollError E113 if it is larger than `MAX_MEMBER_BYTES`, E115 or
    E317."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            content = member.read(MAX_MEMBER_BYTES + 1)
    except OSError as error:
        raise EnrollError("E317", f"{path}: {error.strerror}") from None
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        # no such member, no zip file, packed in a way zipfile cannot read, or encrypted
        raise EnrollError("E115", f"{path}: {error}"[:160]) from None
    if len(content) > MAX_MEMBER_BYTES:
        raise EnrollError("E113", f"{name} in {path}")
    return content
