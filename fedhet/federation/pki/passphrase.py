"""Reads the operator's passphrase: from a file, the environment, a systemd credential, or the terminal.

It is not passed on to other programs, and other processes of the account cannot read this process's memory afterwards.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from pathlib import Path

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.process_supervisor import close_memory

VARIABLE = "FEDHET_PASSPHRASE"
CREDENTIAL = "fedhet-passphrase"
"""Name of the systemd credential: LoadCredential=fedhet-passphrase:/path in the unit."""


def obtain(file: Path | None, *, what: str = "Passphrase", again: bool = False, variable: str = VARIABLE) -> str:
    """The passphrase; typed twice if `again`. Raises EnrollError E305, E306 or E322."""
    close_memory()
    given = os.environ.pop(variable, "")
    if file is not None:
        return _read(file)
    if given:
        return given
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere")) / CREDENTIAL
    if variable == VARIABLE and credential.exists():
        return _line(credential.read_bytes())
    return _typed(what, again)


def _read(file: Path) -> str:
    try:
        private = stat.S_ISREG(file.stat().st_mode)  # a pipe needs no check of its mode
    except FileNotFoundError:
        raise EnrollError("E306", f"{file} is missing") from None
    return _line(private_files.read_private(file) if private else file.read_bytes())


def _line(data: bytes) -> str:
    try:
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise EnrollError("E322", "the passphrase file is not text in UTF-8") from None
    if not text:
        raise EnrollError("E322", "the passphrase file is empty")
    return text


def _typed(what: str, again: bool) -> str:
    if not sys.stdin.isatty():
        raise EnrollError("E322", "there is no terminal to type it")
    if os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():  # reading from the terminal would stop the process
        raise EnrollError("E322", "a process in the background cannot ask for it")
    text = getpass.getpass(f"{what}: ")
    if again and getpass.getpass("Again: ") != text:
        raise EnrollError("E323", "the two differ")
    return text
