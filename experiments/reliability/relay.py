"""A TCP relay on loopback that can be interrupted, as the network between a device and its server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time


class Relay:
    """Passes bytes between clients of `port` and a target port, until it is `cut`. One thread a direction."""

    def __init__(self, target: int) -> None:
        self._target, self._open = target, True
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._up_again = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float) -> None:
        """End every connection, and refuse new ones for so long."""
        self._up_again = time.monotonic() + seconds
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End for good."""
        self._open = False
        self.cut(0.0)
        self._listener.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while self._open:
                if not selector.select(0.5):
                    continue
                with contextlib.suppress(OSError):
                    self._join(self._listener.accept()[0])

    def _join(self, near: socket.socket) -> None:
        if time.monotonic() < self._up_again:
            near.close()
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        self.connections += 1
        with self._lock:
            self._sockets |= {near, far}
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets -= {source}
        source.close()
