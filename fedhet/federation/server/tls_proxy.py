"""The public door: enrolment and the Fleet API behind one TLS port, and nothing else.

A SuperNode's request is let through if its key belongs to an active client with a certificate that holds, asked anew
for every message; so revocation is effective at the next one. Control and Runtime API do not exist on this side.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from base64 import b64decode
from binascii import Error
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from functools import lru_cache
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import identity
from fedhet.federation.server import authentication, connection_limits
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.rate_limits import Window
from fedhet.flower.socket_files import reachable

KEY_HEADER = "flwr-public-key"
HOP = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"),
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"),
    }
)
"""Headers that concern one connection, or say whose it is, and are not passed on."""
SILENCE_S = 60.0
"""How long a sender may fall silent in the middle of a message."""
LEAST_RATE = 100.0
"""Bytes per second that a message must come with on the whole, after so much time for a start."""
HEALTH = ""
"""Questions of health, which anybody may ask, are counted as a node's of this name."""
AT_ONCE = 32
"""Messages of one node that may be under way: nobody who is slow, or wants to be, holds what the others need."""
CONNECTIONS = 1000
PATIENCE = httpx.Timeout(60.0, connect=5.0)


def door(
    federation: Federation, service: FastAPI, url: str, trust: ssl.SSLContext, *, socket: Path | None = None,
    most_bytes: int = 64 << 20,
) -> Starlette:  # fmt: skip
    """The public application. `url` is the SuperLink's and `socket` its file, if it has one; `most_bytes` is the
    largest request that is forwarded. What no path takes is refused, and counted, by the service."""

    messages = Window(federation.policy.messages_per_minute, 60.0)
    under_way: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=CONNECTIONS)
        at = None if socket is None else reachable(socket)
        upstream = httpx.AsyncHTTPTransport(verify=trust, limits=limits, trust_env=False, uds=at)
        async with httpx.AsyncClient(base_url=url, transport=upstream, timeout=PATIENCE, trust_env=False) as client:
            app.state.upstream = client
            yield

    async def fleet(request: Request) -> Response:
        try:
            line = openssh_of(request.headers.get(KEY_HEADER, ""))
            await run_in_threadpool(authentication.fleet_key, federation, line)
            messages.take(line, federation.ticks())
            if under_way[line] >= AT_ONCE:
                raise EnrollError("E112", f"{AT_ONCE} messages of this node are under way")
        except EnrollError as error:
            # 401 is the answer on which a SuperNode ends itself; on others it tries for ever.
            status, stranger = (error.status, {}) if error.code == "E112" else (401, {"connection": "close"})
            return JSONResponse(error.to_dict(), status, stranger)
        return _Held(forward(request, _capped(request, most_bytes)), under_way, line)

    async def health(request: Request) -> Response:
        if under_way[HEALTH] >= AT_ONCE:
            return JSONResponse(EnrollError("E112").to_dict(), 429)
        return _Held(forward(request, None), under_way, HEALTH)

    async def forward(request: Request, body: AsyncIterator[bytes] | None) -> Response:
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > most_bytes:
            return JSONResponse(EnrollError("E113", f"at most {most_bytes} bytes").to_dict(), 413)
        dropped = HOP if body is not None else HOP | {"content-length"}
        headers = [(k, v) for k, v in request.headers.items() if k not in dropped]
        upstream: httpx.AsyncClient = request.app.state.upstream
        outgoing = upstream.build_request(request.method, request.url.path, headers=headers, content=body)
        try:
            answer = await upstream.send(outgoing, stream=True)
        except EnrollError as error:
            return JSONResponse(error.to_dict(), error.status)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except httpx.HTTPError:
            return JSONResponse(EnrollError("E307", "the SuperLink does not answer").to_dict(), 503)
        if body is not None and answer.status_code < 400:  # the SuperLink has checked the node's signature
            connection_limits.proven(request.scope)
        back = {k: v for k, v in answer.headers.items() if k not in HOP}
        return StreamingResponse(_relayed(answer), answer.status_code, back)

    app = Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/v1/fleet/{name:str}", fleet, methods=["POST"]),
            Mount("/v1/enroll", _whole_path(service)),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: service.state.astray},
    )
    app.router.redirect_slashes = False
    return app


@lru_cache(maxsize=4096)
def openssh_of(header: str) -> str:
    """The OpenSSH line of the public key in a SuperNode's header (base64 of PEM). Raises EnrollError E115."""
    try:
        if len(header) > 2048:
            raise ValueError("too long")
        key = serialization.load_pem_public_key(b64decode(header, validate=True))
    except (ValueError, Error, UnsupportedAlgorithm):
        raise EnrollError("E115", "the request shows no SuperNode key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EnrollError("E115", "a SuperNode's key is EC")
    return identity.openssh(key)


def _whole_path(app: ASGIApp) -> ASGIApp:
    """The application with its own full paths, although it is mounted below one."""

    async def whole(scope, receive, send):  # type: ignore[no-untyped-def]
        await app({**scope, "root_path": "", "app_root_path": ""}, receive, send)

    return whole


class _Held(Response):
    """A response that counts as under way from here until its last byte is sent."""

    def __init__(self, made: Awaitable[Response], under_way: Counter[str], line: str) -> None:
        super().__init__()
        self._made, self._under_way, self._line = made, under_way, line
        under_way[line] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await (await self._made)(scope, receive, send)
        finally:
            self._under_way[self._line] -= 1
            if not self._under_way[self._line]:
                del self._under_way[self._line]


async def _capped(request: Request, most: int) -> AsyncIterator[bytes]:
    size, parts, begun = 0, aiter(request.stream()), time.monotonic()
    while True:
        if size < LEAST_RATE * (time.monotonic() - begun - SILENCE_S):
            raise EnrollError("E115", f"it comes with less than {LEAST_RATE:g} bytes per second")
        try:
            async with asyncio.timeout(SILENCE_S):
                part = await anext(parts, None)
        except TimeoutError:
            raise EnrollError("E115", f"nothing came for {SILENCE_S:g} s") from None
        if part is None:
            return
        size += len(part)
        if size > most:
            raise EnrollError("E113", f"at most {most} bytes")
        yield part


async def _relayed(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()
