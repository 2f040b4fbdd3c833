"""Flower's programs on socket files: an address of loopback that only one account of this machine can reach.

Flower 1.41 and 1.42 listen on TCP ports alone, and whoever reaches a SuperLink's Control API may run any program as its
account: account authentication is not part of the open distribution, and its TLS knows no client certificates. A TCP
port of loopback is reached by every account; a socket file in a folder of mode 0700 by its owner.

    python -P -m fedhet.flower.socket_files flower-superlink --host 127.0.0.1 --port 1 ...

runs one of Flower's programs, and gives three public names another meaning in it: an address that FEDHET_SOCKETS lists
is served on its socket file (`uvicorn.Config`) and reached through it (`httpx.Client`), and Flower's programs which it
starts are run like it (`subprocess.Popen`).
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
"""In the environment: JSON, the path of a socket file for each address "127.0.0.1:1"."""
TRUST = "FEDHET_TRUST"
"""In the environment: a file of certificates that TLS clients take into account beside what they are given."""
LONGEST = 100
"""Bytes of a path that can be a socket's everywhere; Linux takes 107, macOS 103."""


def address(number: int) -> str:
    """A name for one of several socket files, of the form that Flower demands.

    These ports are privileged and hardly anybody's: no other address is hidden by them, and a program that did not
    know of its socket file could not listen there, unless it is root's.
    """
    return f"127.0.0.1:{1 + number}"


def command(program: str, *words: str) -> list[str]:
    """The command line of one of Flower's programs."""
    return [sys.executable, "-P", "-m", "fedhet.flower.socket_files", program, *words]


def environment(sockets: Mapping[str, Path], trust: Path | None = None) -> dict[str, str]:
    """What the command needs to know: which addresses are which socket files; whose certificates are rejected."""
    own = {SOCKETS: json.dumps({at: str(path) for at, path in sockets.items()})}
    return own if trust is None else {**own, TRUST: str(trust)}


def reachable(path: Path) -> str:
    """A name for a socket file that is short enough for the kernel. Raises OSError if there is none.

    A path below a folder that this process holds open is always short, where there is /proc.
    """
    if len(os.fsencode(path)) <= LONGEST:
        return str(path)
    if not sys.platform.startswith("linux"):
        raise OSError(f"{path} is too long for a socket file: at most {LONGEST} bytes")
    return f"/proc/self/fd/{_held(str(path.parent))}/{path.name}"


@lru_cache(maxsize=64)
def _held(folder: str) -> int:
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
            with socket.socket(socket.AF_UNIX) as first:  # uvicorn takes its place, with its mode
                first.bind(self.uds)
            Path(path).chmod(0o600)

    setattr(uvicorn.Config, "__init__", on_socket)  # noqa: B010 - mypy refuses the plain assignment


def _connect(sockets: Mapping[str, str], rejected: str | None) -> None:
    import httpx

    build = httpx.Client.__init__

    def through_socket(self: httpx.Client, *words: Any, **given: Any) -> None:
        trust = httpx.create_ssl_context(given.get("verify", True))
        if rejected is not None:  # Flower reads the roots of its own file alone (fedhet/federation/pki/trust.py)
            trust.load_verify_locations(cafile=rejected)
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
