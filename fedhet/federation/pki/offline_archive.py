"""The zip files that carry a request to the operator and a signed answer back."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError

DOMAIN = "fedhet.answer.v1"


MOST = 1 << 20
"""Bytes of one file in an archive that are read."""


def write(path: Path, members: Mapping[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    private_files.write_file(path, buffer.getvalue())


def read(path: Path, name: str) -> bytes:
    """One member, by its exact name and never more than MOST bytes of it. Raises EnrollError E115 or E317."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            content = member.read(MOST + 1)
    except OSError as error:
        raise EnrollError("E317", f"{path}: {error.strerror}") from None
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        # no such member, no zip file, packed in a way zipfile cannot read, or encrypted
        raise EnrollError("E115", f"{path}: {error}"[:160]) from None
    if len(content) > MOST:
        raise EnrollError("E113", f"{name} in {path}")
    return content
