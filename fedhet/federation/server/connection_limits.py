"""Limits on connections, authenticated or not: how many there may be, and how long each phase of one may take.

Every accepted socket belongs to a `Guard`, which performs the TLS handshake itself, so that handshakes are counted and
time out too. It passes the bytes to uvicorn's protocol and limits each phase:

    handshake ── HANDSHAKE_S ──> idle ── SILENT_S ──> request head ── HEAD_S ──> request ── REQUEST_S ──> idle

The time for a body is limited where it is read (http_api.py, tls_proxy.py); a peer that stops reading by `STALL_S`.

One address (an IPv6 /64) has at most `per_address` connections, all addresses together `total`. Beyond that the oldest
idle connection is closed, first one that never carried a client's request: one of the same address or, if `total` is
reached, one of the address with the most connections. A connection with a client's request in progress is not closed.
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
"""Seconds for the TLS handshake."""
SILENT_S = 10.0
"""Seconds from the handshake or the last answer to the first byte of a request."""
HEAD_S = 10.0
"""Seconds from the first byte of a request to the end of its head."""
REQUEST_S = 3600.0
"""Seconds for a request and its answer."""
STALL_S = 300.0
"""Seconds in which a peer must read what is buffered for it, about 50 KB."""
HEAD_BYTES = 32 << 10
"""Largest head of a request, or trailer of a body, in bytes."""
CONNECTION = "fedhet.connection"
"""Key of a request's ASGI scope under which its Guard is stored."""


@dataclass
class Guards:
    """All connections of one public TLS proxy. `app` handles their requests."""

    app: ASGIApp
    tls: ssl.SSLContext | None
    per_address: int = 256
    total: int = 2000
    proxies: Proxies = field(default_factory=Proxies)
    _groups: dict[str, dict[Guard, None]] = field(default_factory=dict)
    _by_peer: dict[tuple[str, int], Guard] = field(default_factory=dict)

    def config(self, **given: Any) -> uvicorn.Config:
        """Configuration of the uvicorn server whose connections are limited here. It logs through the root logger."""
        # A transport that is paused in connection_made reads nothing in asyncio's own loop; in uvloop it does.
        config = uvicorn.Config(
            self._count_requests, interface="asgi3", loop="asyncio", ws="none", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, h11_max_incomplete_event_size=HEAD_BYTES, **given,
        )  # fmt: skip
        # h11 limits heads, chunk headers and trailers; httptools accepts them at any length.
        config.http = cast(type[asyncio.Protocol], partial(self._protocol, H11Protocol))
        return config

    @property
    def count(self) -> int:
        """Number of open connections, including those in the TLS handshake."""
        return sum(map(len, self._groups.values()))

    def admit(self, new: Guard) -> bool:
        """Register a connection, closing another if a limit is reached; False if there is no room for it."""
        group = self._groups.get(new.bucket, {})
        if len(group) >= self.per_address and new.peer[0] not in self.proxies and not _close_one(group):
            return False
        if self.count >= self.total:
            largest = sorted(self._groups.values(), key=len, reverse=True)
            if not any(_close_one(each) for each in largest):
                return False
        self._groups.setdefault(new.bucket, {})[new] = None
        self._by_peer[new.peer] = new
        return True

    def forget(self, gone: Guard) -> None:
        """Remove a closed connection. Safe to call twice."""
        group = self._groups.get(gone.bucket, {})
        group.pop(gone, None)
        if not group:
            self._groups.pop(gone.bucket, None)
        if self._by_peer.get(gone.peer) is gone:
            del self._by_peer[gone.peer]

    def _protocol(self, make_protocol: Callable[..., asyncio.Protocol], **given: Any) -> Guard:
        return Guard(self, partial(make_protocol, **given))

    async def _count_requests(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        peer = scope["client"] or ("", 0)
        guard = self._by_peer.get(tuple(peer))
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        scope = {**scope, "client": (self.proxies.client(peer[0], forwarded), peer[1]), CONNECTION: guard}
        with guard.request_in_progress() if guard is not None else contextlib.nullcontext():
            await self.app(scope, receive, send)


def proven(scope: Scope) -> None:
    """Mark the connection of a request as an enrolled client's: it is closed last."""
    guard: Guard | None = scope.get(CONNECTION)
    if guard is not None:
        guard.known = True


class Guard(asyncio.Protocol):
    """One connection. `known`: a request on it was that of an enrolled client."""

    def __init__(self, guards: Guards, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._guards, self._make_protocol = guards, make_protocol
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
            transport.pause_reading()  # the first bytes belong to the handshake
            self._task = self._loop.create_task(self._handshake(transport, self._guards.tls))

    async def _handshake(self, raw: asyncio.Transport, tls: ssl.SSLContext) -> None:
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
        self._inner = self._make_protocol()
        self._inner.connection_made(transport)
        self._limit(SILENT_S)
        for data in self._early:
            self.data_received(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._inner is None:  # data that arrives before _open has run
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
        self._stall = self._loop.call_later(STALL_S, self.close)
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
        if self._inner is not None:
            self._inner.resume_writing()

    @contextlib.contextmanager
    def request_in_progress(self) -> Iterator[None]:
        """Around handling one request, from the end of its head to the end of its answer."""
        self.requests += 1
        self._in_head = False
        self._limit(REQUEST_S)
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self._limit(SILENT_S)

    def close(self) -> None:
        """Close the connection at once."""
        self._guards.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def _limit(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self._transport is None else self._loop.call_later(seconds, self.close)


def _close_one(group: Iterable[Guard]) -> bool:
    """Close the least important connection of a group, the oldest of its kind; False if a client uses every one.

    Order: unknown and idle, unknown with a request, known and idle.
    """
    importance = [(guard.known, bool(guard.requests)) for guard in group]
    least = min(importance, default=(True, True))
    if least == (True, True):
        return False
    next(guard for guard, of in zip(list(group), importance, strict=True) if of == least).close()
    return True
