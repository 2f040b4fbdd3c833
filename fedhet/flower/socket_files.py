"""Flower's programs on socket files: loopback addresses that only one account of this machine can reach.

Flower 1.41 and 1.42 listen on TCP ports only, and any client of a SuperLink's Control API can run any program as the
SuperLink's account: account authentication is not part of the open distribution, and its TLS has no client
certificates. Every account of the machine can connect to a loopback TCP port; only its owner to a socket file in a
folder of mode 0700.

    python -P -m fedhet.flower.socket_files flower-superlink --host 127.0.0.1 --port 1 ...

runs one of Flower's programs with three public names patched: an address listed in FEDHET_SOCKETS is served on its
socket file (`uvicorn.Config`) and reached through it (`httpx.Client`), and Flower programs that it starts are run in
the same way (`subprocess.Popen`).
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

SOCKETS = "FEDHET_SOCKETS"
"""Environment variable: a JSON object that maps addresses ("127.0.0.1:1") to paths of socket files."""
TRUST = "FEDHET_TRUST"
"""Environment variable: a file of certificates that TLS clients load in addition to their own."""
MAX_PATH_BYTES = 100
"""Length of a socket file's path that every system allows; Linux allows 107 bytes, macOS 103."""


def address(number: int) -> str:
    """The address of socket file number `number`, in the form host:port that Flower requires.

    These ports are privileged and rarely used: they hide no other address, and a program without the patch could not
    listen there, unless it runs as root.
    """
    return f"127.0.0.1:{1 + number}"


def command(program: str, *words: str) -> list[str]:
    """The command line that runs one of Flower's programs in this way."""
    return [sys.executable, "-P", "-m", "fedhet.flower.socket_files", program, *words]


def environment(sockets: Mapping[str, Path], trust: Path | None = None) -> dict[str, str]:
    """The environment of `command`: the socket file of each address; `trust` is a file of trusted and rejected
    certificates."""
    own = {SOCKETS: json.dumps({at: str(path) for at, path in sockets.items()})}
    return own if trust is None else {**own, TRUST: str(trust)}


def reachable(path: Path) -> str:
    """A path of a socket file that is short enough for the kernel. Raises OSError if there is none.

    On Linux a long path is replaced by one below /proc/self/fd, through an open descriptor of its folder.
    """
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        return str(path)
    if not sys.platform.startswith("linux"):
        raise OSError(f"{path} is too long for a socket file: at most {MAX_PATH_BYTES} bytes")
    return f"/proc/self/fd/{_descriptor(str(path.parent))}/{path.name}"


@lru_cache(maxsize=64)
def _descriptor(folder: str) -> int:
    return os.open(folder, os.O_PATH | os.O_DIRECTORY)


def _serve(sockets: Mapping[str, str]) -> None:
    import uvicorn

    build = uvicorn.Config.__init__

    def on_socket(self: uvicorn.Config, *words: Any, **given: Any) -> None:
        build(self, *words, **given)
        path = sockets.get(f"{self.host}:{self.port}")
        if path is not None:
            self.uds = reachable(Path(path))
            Path(path).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as first:  # uvicorn replaces it and copies its mode
                first.bind(self.uds)
            Path(path).chmod(0o600)

    setattr(uvicorn.Config, "__init__", on_socket)  # noqa: B010 - mypy refuses the plain assignment


def _connect(sockets: Mapping[str, str], trust_file: str | None) -> None:
    import httpx

    build = httpx.Client.__init__

    def through_socket(self: httpx.Client, *words: Any, **given: Any) -> None:
        trust = httpx.create_ssl_context(given.get("verify", True))
        if trust_file is not None:  # Flower reads the roots of its own file alone (fedhet/federation/pki/trust.py)
            trust.load_verify_locations(cafile=trust_file)
        ours = {f"all://{at}": httpx.HTTPTransport(verify=trust, uds=reachable(Path(path)))
                for at, path in sockets.items()}  # fmt: skip
        build(self, *words, **given | {"verify": trust, "mounts": {**ours, **(given.get("mounts") or {})}})

    setattr(httpx.Client, "__init__", through_socket)  # noqa: B010


def _start(programs: Mapping[str, Any]) -> None:
    import subprocess

    build = subprocess.Popen.__init__

    def like_this_one(self: subprocess.Popen[Any], args: Any, *words: Any, **given: Any) -> None:
        ours = isinstance(args, list) and args and args[0] in programs
        build(self, command(*args) if ours else args, *words, **given)

    setattr(subprocess.Popen, "__init__", like_this_one)  # noqa: B010


def main(program: str, *words: str) -> None:
    """Run one of Flower's programs, by its name. Ends the process."""
    programs = {e.name: e for e in distribution("flwr").entry_points if e.group == "console_scripts"}
    sockets: dict[str, str] = json.loads(os.environ[SOCKETS])
    _connect(sockets, os.environ.get(TRUST))
    _start(programs)
    if program in ("flower-superlink", "flower-supernode"):
        _serve(sockets)
    sys.argv = [program, *words]
    sys.exit(programs[program].load()())


if __name__ == "__main__":
    main(*sys.argv[1:])
