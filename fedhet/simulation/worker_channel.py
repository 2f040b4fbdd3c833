"""Frames on a socket without a name: the pool's end, which never blocks, and a worker's, which always does.

The pool would wait for ever if it wrote to a worker that does not read, or read the rest of an answer of one that is
stopped. So it writes what the socket takes and keeps the rest, and keeps the beginning of an answer until all is there.
"""

from __future__ import annotations

import socket
import struct

HEAD = struct.Struct("!Q")
"""Before each frame, its length in bytes."""

PIECE = 1 << 18


class Channel:
    """The pool's end. It is `over` once the worker's end was found closed; what came before then still comes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.over = False
        self._socket, self._owed, self._come = sock, bytearray(), bytearray()

    @property
    def owes(self) -> bool:
        """Whether there is something left to write."""
        return bool(self._owed)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        """As much as the socket takes; `flush` writes more."""
        self._owed += HEAD.pack(len(frame))
        self._owed += frame
        self.flush()

    def flush(self) -> None:
        """Write of what is left as much as the socket takes."""
        try:
            while self._owed:
                with memoryview(self._owed) as view:
                    written = self._socket.send(view)
                del self._owed[:written]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.over = True

    def receive(self) -> list[bytes]:
        """The frames that are complete by now."""
        try:
            while got := self._socket.recv(PIECE):
                self._come += got
            self.over = True
        except BlockingIOError:
            pass
        except ConnectionResetError:  # it was gone before it had read everything
            self.over = True
        frames, at = [], 0
        while len(self._come) >= at + HEAD.size:
            end = at + HEAD.size + HEAD.unpack_from(self._come, at)[0]
            if len(self._come) < end:
                break
            frames.append(bytes(self._come[at + HEAD.size : end]))
            at = end
        del self._come[:at]
        return frames


def send(sock: socket.socket, frame: bytes) -> None:
    """A worker's end of `Channel`. Raises OSError once the pool is gone."""
    sock.sendall(HEAD.pack(len(frame)) + frame)


def receive(sock: socket.socket) -> bytes:
    """Wait for a frame. Raises OSError or EOFError once the pool is gone."""
    return bytes(_exactly(sock, HEAD.unpack(_exactly(sock, HEAD.size))[0]))


def _exactly(sock: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return found
