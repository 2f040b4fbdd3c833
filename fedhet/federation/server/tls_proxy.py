"""The public TLS proxy: the enrolment API and Flower's Fleet API behind one port, and nothing else.

A SuperNode's message is forwarded if its key belongs to an active client with a valid certificate. This is checked for
every message, so a revocation takes effect at the next one. Flower's Control and Runtime APIs are not reachable here.
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
HOP_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"),
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"),
    }
)
"""Headers of one connection (RFC 9110 section 7.6.1), or that name its peer; they are not forwarded."""
SILENCE_S = 60.0
"""Seconds without data in the middle of a message, at most."""
MIN_BYTES_PER_S = 100.0
"""Bytes per second that a message must average, after a grace time of `SILENCE_S`."""
HEALTH_KEY = ""
"""Key under which unauthenticated health requests are counted."""
MAX_MESSAGES_PER_NODE = 32
"""Messages of one node in progress at a time, so that slow nodes cannot use up the connections to the SuperLink."""
MAX_CONNECTIONS = 1000
TIMEOUT = httpx.Timeout(60.0, connect=5.0)


def public_app(
    federation: Federation, service: FastAPI, url: str, trust: ssl.SSLContext, *, socket: Path | None = None,
    most_bytes: int = 64 << 20,
) -> Starlette:  # fmt: skip
    """The public application. `url` is the SuperLink's address and `socket` its socket file, if it has one;
    `most_bytes` is the largest request that is forwarded. Other paths are refused, and counted, by `service`."""

    messages = Window(federation.policy.messages_per_minute, 60.0)
    in_progress: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
        at = None if socket is None else reachable(socket)
        upstream = httpx.AsyncHTTPTransport(verify=trust, limits=limits, trust_env=False, uds=at)
        async with httpx.AsyncClient(base_url=url, transport=upstream, timeout=TIMEOUT, trust_env=False) as client:
            app.state.upstream = client
            yield

    async def fleet(request: Request) -> Response:
        try:
            line = openssh_of(request.headers.get(KEY_HEADER, ""))
            await run_in_threadpool(authentication.fleet_key, federation, line)
            messages.take(line, federation.ticks())
            if in_progress[line] >= MAX_MESSAGES_PER_NODE:
                raise EnrollError("E112", f"{MAX_MESSAGES_PER_NODE} messages of this node are in progress")
        except EnrollError as error:
            # A SuperNode exits on 401; on other errors it retries forever.
            status, headers_back = (error.status, {}) if error.code == "E112" else (401, {"connection": "close"})
            return JSONResponse(error.to_dict(), status, headers_back)
        return _CountedResponse(forward(request, _limited_body(request, most_bytes)), in_progress, line)

    async def health(request: Request) -> Response:
        if in_progress[HEALTH_KEY] >= MAX_MESSAGES_PER_NODE:
            return JSONResponse(EnrollError("E112").to_dict(), 429)
        return _CountedResponse(forward(request, None), in_progress, HEALTH_KEY)

    async def forward(request: Request, body: AsyncIterator[bytes] | None) -> Response:
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > most_bytes:
            return JSONResponse(EnrollError("E113", f"at most {most_bytes} bytes").to_dict(), 413)
        dropped = HOP_HEADERS if body is not None else HOP_HEADERS | {"content-length"}
        headers = [(k, v) for k, v in request.headers.items() if k not in dropped]
        upstream: httpx.AsyncClient = request.app.state.upstream
        outgoing = upstream.build_request(request.method, request.url.path, headers=headers, content=body)
        try:
            answer = await upstream.send(outgoing, stream=True)
        except EnrollError as error:
            return JSONResponse(error.to_dict(), error.status)
        except ClientDisconnect:
            return Response(status_code=400)  # the client is gone
        except httpx.HTTPError:
            return JSONResponse(EnrollError("E307", "the SuperLink does not answer").to_dict(), 503)
        if body is not None and answer.status_code < 400:  # the SuperLink has checked the node's signature
            connection_limits.proven(request.scope)
        back = {k: v for k, v in answer.headers.items() if k not in HOP_HEADERS}
        return StreamingResponse(_answer_body(answer), answer.status_code, back)

    app = Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/v1/fleet/{name:str}", fleet, methods=["POST"]),
            Mount("/v1/enroll", _full_path(service)),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: service.state.unroutable},
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


def _full_path(app: ASGIApp) -> ASGIApp:
    """An application that sees full paths although it is mounted below a prefix."""

    async def with_full_path(scope, receive, send):  # type: ignore[no-untyped-def]
        await app({**scope, "root_path": "", "app_root_path": ""}, receive, send)

    return with_full_path


class _CountedResponse(Response):
    """A response that counts as in progress from its creation until its last byte is sent."""

    def __init__(self, made: Awaitable[Response], in_progress: Counter[str], line: str) -> None:
        super().__init__()
        self._made, self._in_progress, self._line = made, in_progress, line
        in_progress[line] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await (await self._made)(scope, receive, send)
        finally:
            self._in_progress[self._line] -= 1
            if not self._in_progress[self._line]:
                del self._in_progress[self._line]


async def _limited_body(request: Request, most: int) -> AsyncIterator[bytes]:
    size, parts, begun = 0, aiter(request.stream()), time.monotonic()
    while True:
        if size < MIN_BYTES_PER_S * (time.monotonic() - begun - SILENCE_S):
            raise EnrollError("E115", f"it arrives at less than {MIN_BYTES_PER_S:g} bytes per second")
        try:
            async with asyncio.timeout(SILENCE_S):
                part = await anext(parts, None)
        except TimeoutError:
            raise EnrollError("E115", f"no data for {SILENCE_S:g} s") from None
        if part is None:
            return
        size += len(part)
        if size > most:
            raise EnrollError("E113", f"at most {most} bytes")
        yield part


async def _answer_body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()
