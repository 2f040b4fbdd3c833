"""The control socket of a running server: a Unix socket in the federation's folder, usable when the disk is full.

One line of JSON each way; the only request is to shut out a client. The folder is accessible to the operator alone, and
the peer's user id is checked as well.
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
TIMEOUT_S = 5.0
"""Seconds to wait for the peer's line."""
MAX_LINE_BYTES = 1 << 16
"""Bytes of a line, at most."""


@dataclass
class ControlSocket:
    """Context manager: listens in a federation's folder and answers each request with `handle(request)`."""

    home: Path
    handle: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)
    _socket: socket.socket = field(init=False)

    def __enter__(self) -> ControlSocket:
        path = reachable(self._path)
        self._path.unlink(missing_ok=True)  # left by a server that was killed; this one has the folder's lock
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._path.chmod(0o600)
        self._socket.listen(8)
        self._socket.settimeout(0.2)
        self._thread = threading.Thread(target=self._serve, name="control-socket")
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
                peer.settimeout(TIMEOUT_S)
                try:
                    self._answer(peer)
                except OSError as error:  # the peer closed the connection, or sent nothing in time
                    log.warning("a request on the control socket failed: %s", error)

    def _answer(self, peer: socket.socket) -> None:
        if _user(peer) not in (os.getuid(), 0):
            return
        try:
            request = json.loads(_line(peer))
            answer = dict(self.handle(request if isinstance(request, dict) else {}))
        except EnrollError as error:
            answer = {"error": error.to_dict()}
        except ValueError as error:
            answer = {"error": EnrollError("E115", str(error)).to_dict()}
        peer.sendall(json.dumps(answer).encode() + b"\n")


def ask(home: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Send a request to the process that serves a federation and return its answer. Raises EnrollError E312 if there is
    none, and the error that it answers with."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(reachable(home.resolve() / NAME))
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_line(connection))
    except (OSError, ValueError) as error:
        raise EnrollError("E312", str(error)) from None
    if "error" in answer:
        raise EnrollError.from_dict(answer["error"])
    return dict(answer)


def _line(peer: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = peer.recv(4096)
        if not part or len(data) > MAX_LINE_BYTES:
            raise ValueError("the line is incomplete or too long")
        data += part
    return data


def _user(peer: socket.socket) -> int:
    """User id of the process at the other end."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()  # the folder's mode is the only check
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)
