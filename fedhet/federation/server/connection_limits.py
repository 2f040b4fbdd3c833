"""Connections before anybody is known on them: how many there may be, and how long each may take to get to its point.

Every accepted socket is held by a `Guard`, which makes the TLS handshake itself, so that a handshake counts and ends in
time as well. It hands the bytes to uvicorn's protocol and limits the times of a connection:

    handshake ── HANDSHAKE_S ──> silent ── SILENT_S ──> head of a request ── HEAD_S ──> request ── WHOLE_S ──> silent

What a body may take is limited where it is read (service.py, proxy.py), a reader that takes nothing by `STALL_S`.

One address (an IPv6 /64) has at most `per_address` connections, all together at most `total`. Beyond that the oldest
idle one makes room: those that never had an answer as a client first, of the address itself or, when all places are
taken, of the address that has most. What is at work for a client is never put out.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedhet.federation.server.peer_addresses import Proxies, bucket

HANDSHAKE_S = 10.0
"""Seconds for TLS."""
SILENT_S = 10.0
"""Seconds within which the first byte of a request has come, after the handshake or after the last answer."""
HEAD_S = 10.0
"""Seconds from the first byte of a request to the last of its head."""
WHOLE_S = 3600.0
"""Seconds for a request and its answer, whatever they hold."""
STALL_S = 300.0
"""Seconds in which a reader takes at least what lies ready for it, some 50 KB."""
HEAD_BYTES = 32 << 10
"""Bytes of a head, or of the trailer of a body."""
CONNECTION = "fedhet.connection"
"""Where a request's scope has its Guard."""


@dataclass
class Guards:
    """All connections of one door. `app` is what their requests are handed to."""

    app: ASGIApp
    tls: ssl.SSLContext | None
    per_address: int = 256
    total: int = 2000
    proxies: Proxies = field(default_factory=Proxies)
    _groups: dict[str, dict[Guard, None]] = field(default_factory=dict)
    _by_peer: dict[tuple[str, int], Guard] = field(default_factory=dict)

    def config(self, **given: Any) -> uvicorn.Config:
        """Settings of a uvicorn server whose connections these are. Its log lines go where all others do."""
        # asyncio's own loop reads nothing from a connection that is paused as it is made, which uvloop does.
        config = uvicorn.Config(
            self._counted, interface="asgi3", loop="asyncio", ws="none", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, h11_max_incomplete_event_size=HEAD_BYTES, **given,
        )  # fmt: skip
        # h11 bounds heads, chunk headers and trailers; the faster parser takes them at any length.
        config.http = cast(type[asyncio.Protocol], partial(self._protocol, H11Protocol))
        return config

    @property
    def count(self) -> int:
        """Connections there are, those that still shake hands included."""
        return sum(map(len, self._groups.values()))

    def admit(self, new: Guard) -> bool:
        """Enter a connection, putting another out if need be; False if there is no room for it."""
        group = self._groups.get(new.bucket, {})
        if len(group) >= self.per_address and new.peer[0] not in self.proxies and not _put_out(group):
            return False
        if self.count >= self.total:
            crowded = sorted(self._groups.values(), key=len, reverse=True)
            if not any(_put_out(each) for each in crowded):
                return False
        self._groups.setdefault(new.bucket, {})[new] = None
        self._by_peer[new.peer] = new
        return True

    def forget(self, gone: Guard) -> None:
        """A connection ended; to say so twice does no harm."""
        group = self._groups.get(gone.bucket, {})
        group.pop(gone, None)
        if not group:
            self._groups.pop(gone.bucket, None)
        if self._by_peer.get(gone.peer) is gone:
            del self._by_peer[gone.peer]

    def _protocol(self, made: Callable[..., asyncio.Protocol], **given: Any) -> Guard:
        return Guard(self, partial(made, **given))

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        peer = scope["client"] or ("", 0)
        guard = self._by_peer.get(tuple(peer))
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        scope = {**scope, "client": (self.proxies.client(peer[0], forwarded), peer[1]), CONNECTION: guard}
        with guard.at_work() if guard is not None else contextlib.nullcontext():
            await self.app(scope, receive, send)


def proven(scope: Scope) -> None:
    """Whoever sent this request is an enrolled client: its connection is put out last."""
    guard: Guard | None = scope.get(CONNECTION)
    if guard is not None:
        guard.known = True


class Guard(asyncio.Protocol):
    """One connection. `known`: a request on it was that of an enrolled client."""

    def __init__(self, guards: Guards, made: Callable[[], asyncio.Protocol]) -> None:
        self._guards, self._made = guards, made
        self._loop = asyncio.get_running_loop()
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self._in_head = False
        self.requests = 0
        self.known = False
        self.peer, self.bucket = ("", 0), "?"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        host, port = (transport.get_extra_info("peername") or ("", 0))[:2]
        self.peer, self.bucket = (str(host), int(port)), bucket(str(host))
        if not self._guards.admit(self):
            transport.abort()
        elif self._guards.tls is None:
            self._open(transport)
        else:
            transport.pause_reading()  # the first bytes are the handshake's
            self._task = self._loop.create_task(self._shake_hands(transport, self._guards.tls))

    async def _shake_hands(self, raw: asyncio.Transport, tls: ssl.SSLContext) -> None:
        try:
            secured = await self._loop.start_tls(
                raw, self, tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=HANDSHAKE_S
            )
        except (OSError, EOFError):  # ssl.SSLError, a handshake that took too long, a peer that went away
            secured = None
        if secured is None or raw.is_closing():
            raw.abort()
            self._guards.forget(self)
        else:
            self._open(secured)

    def _open(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._inner = self._made()
        self._inner.connection_made(transport)
        self._limit(SILENT_S)
        for data in self._early:
            self.data_received(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._inner is None:  # between the end of the handshake and its being told
            self._early.append(data)
            return
        if not self.requests and not self._in_head:
            self._in_head = True
            self._limit(HEAD_S)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._guards.forget(self)
        self._transport = None
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()
        if self._inner is not None:
            self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._stall = self._loop.call_later(STALL_S, self.put_out)
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
        if self._inner is not None:
            self._inner.resume_writing()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The head of a request is whole; it is answered when this ends."""
        self.requests += 1
        self._in_head = False
        self._limit(WHOLE_S)
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self._limit(SILENT_S)

    def put_out(self) -> None:
        """End the connection at once."""
        self._guards.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def _limit(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self._transport is None else self._loop.call_later(seconds, self.put_out)


def _put_out(group: Iterable[Guard]) -> bool:
    """End the connection of a group that is worth least, the oldest of its kind; False if all are needed."""
    worth = [(guard.known, bool(guard.requests)) for guard in group]
    least = min(worth, default=(True, True))
    if least == (True, True):
        return False
    next(guard for guard, of in zip(list(group), worth, strict=True) if of == least).put_out()
    return True
