"""Frames on an unnamed socket pair: the pool's end, which never blocks, and a worker's end, which blocks.

A blocking pool would wait for ever if it wrote to a worker that does not read, or read the rest of an answer of a
stopped one. So it writes what the socket accepts and buffers the rest, and buffers the beginning of an answer until it
is complete.
"""

from __future__ import annotations

import socket
import struct

HEAD = struct.Struct("!Q")
"""The header of a frame: its length in bytes."""

READ_BYTES = 1 << 18
"""Bytes per read from the socket."""


class Channel:
    """The pool's end. `over` is set when the worker's end is closed; frames received before are still returned."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.over = False
        self._socket, self._unsent, self._received = sock, bytearray(), bytearray()

    @property
    def has_unsent(self) -> bool:
        """Whether there are buffered bytes to write."""
        return bool(self._unsent)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        """Write as much of a frame as the socket accepts; `flush` writes the rest."""
        self._unsent += HEAD.pack(len(frame))
        self._unsent += frame
        self.flush()

    def flush(self) -> None:
        """Write as much of the buffered bytes as the socket accepts."""
        try:
            while self._unsent:
                with memoryview(self._unsent) as view:
                    written = self._socket.send(view)
                del self._unsent[:written]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.over = True

    def receive(self) -> list[bytes]:
        """The frames that are complete now."""
        try:
            while got := self._socket.recv(READ_BYTES):
                self._received += got
            self.over = True
        except BlockingIOError:
            pass
        except ConnectionResetError:  # the worker ended before it had read everything
            self.over = True
        frames, at = [], 0
        while len(self._received) >= at + HEAD.size:
            end = at + HEAD.size + HEAD.unpack_from(self._received, at)[0]
            if len(self._received) < end:
                break
            frames.append(bytes(self._received[at + HEAD.size : end]))
            at = end
        del self._received[:at]
        return frames


def send(sock: socket.socket, frame: bytes) -> None:
    """A worker's end: write a frame. Raises OSError after the pool has ended."""
    sock.sendall(HEAD.pack(len(frame)) + frame)


def receive(sock: socket.socket) -> bytes:
    """A worker's end: wait for a frame. Raises OSError or EOFError after the pool has ended."""
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
