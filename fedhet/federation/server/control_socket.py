"""What the operator can tell a running server although nothing can be written: a socket file in its folder.

One line of JSON each way. Whoever may connect may do anything with the federation anyway: the folder is the operator's
alone, and the peer is asked for its user all the same. So far there is one thing to say: to shut a client out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.flower.socket_files import reachable

log = logging.getLogger("fedhet.federation")
NAME = "serve.sock"
PATIENCE_S = 5.0
"""Seconds one side waits for the other's line."""
LONGEST = 1 << 16
"""Bytes of a line."""


@dataclass
class ControlSocket:
    """Listens in a federation's folder while it is entered, and answers with what `hear` makes of a request."""

    home: Path
    hear: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)
    _socket: socket.socket = field(init=False)

    def __enter__(self) -> ControlSocket:
        path = reachable(self._path)
        self._path.unlink(missing_ok=True)  # of a server that was killed; this one holds the home's lock
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._path.chmod(0o600)
        self._socket.listen(8)
        self._socket.settimeout(0.2)
        self._thread = threading.Thread(target=self._serve, name="desk")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    @property
    def _path(self) -> Path:
        return self.home.resolve() / NAME

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                peer, _ = self._socket.accept()
            except TimeoutError:
                continue
            with peer:
                peer.settimeout(PATIENCE_S)
                try:
                    self._answer(peer)
                except OSError as error:  # it went away, or said nothing
                    log.warning("a command broke off: %s", error)

    def _answer(self, peer: socket.socket) -> None:
        if _user(peer) not in (os.getuid(), 0):
            return
        try:
            asked = json.loads(_line(peer))
            told = dict(self.hear(asked if isinstance(asked, dict) else {}))
        except EnrollError as error:
            told = {"error": error.to_dict()}
        except ValueError as error:
            told = {"error": EnrollError("E115", str(error)).to_dict()}
        peer.sendall(json.dumps(told).encode() + b"\n")


def ask(home: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """What the process that serves a federation answers. Raises EnrollError E312 if none does, or its refusal."""
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(PATIENCE_S)
            link.connect(reachable(home.resolve() / NAME))
            link.sendall(json.dumps(request).encode() + b"\n")
            told = json.loads(_line(link))
    except (OSError, ValueError) as error:
        raise EnrollError("E312", str(error)) from None
    if "error" in told:
        raise EnrollError.from_dict(told["error"])
    return dict(told)


def _line(peer: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = peer.recv(4096)
        if not part or len(data) > LONGEST:
            raise ValueError("no whole line came")
        data += part
    return data


def _user(peer: socket.socket) -> int:
    """Whose process is at the other end."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()  # the folder's mode must do
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)
