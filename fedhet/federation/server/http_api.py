"""The enrolment API: `admission` over HTTP, with limits in front of it and the error catalogue behind it.

    GET  /v1/enroll/root   the root certificate, which a device compares with its token before it sends anything
    POST /v1/enroll/join   token and keys        POST /v1/enroll/poll     state of an application
    POST /v1/enroll/renew  a new certificate     POST /v1/enroll/profile  a new profile
    POST /v1/enroll/rotate new keys of all kinds
    POST /v1/enroll/leave  leave for good        POST /v1/enroll/whoami   the client's state
    GET  /v1/enroll/crl    the revocation list   POST /v1/enroll/speed/N  accepts any body, answers with N bytes

Every answer has the server's time in a header, so that a device can report a wrong clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import fedhet
from fedhet.federation.common.errors import EnrollError, unwritable
from fedhet.federation.pki import canonical_json, certificates
from fedhet.federation.server import admission, authentication, client_requests, connection_limits
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.rate_limits import Asker, Limits, Slots, Window

log = logging.getLogger("fedhet.federation")
SERVER_TIME = "x-fedhet-server-time"
BODY_S = 10.0
"""Seconds to receive a body."""
BLOCK = 1 << 22
"""Largest block of a link measurement, in bytes."""
BLOCKS_PER_HOUR = 200
"""Link measurement requests per client and hour."""
MAX_LARGE_REQUESTS = 16
"""Link measurement requests in memory at a time."""
ROUTING_ERRORS = {404: "E120", 405: "E121"}
"""Error code by the HTTP status that routing refuses a request with."""
DRAIN_S = 2.0
"""Seconds for which a refused body is read and discarded."""


def service(federation: Federation) -> FastAPI:
    """The enrolment API of one federation."""
    app = FastAPI(title="fedhet enrolment", version=fedhet.__version__, docs_url=None, redoc_url=None, openapi_url=None,
                  redirect_slashes=False)  # fmt: skip
    limits, large = Limits(federation.policy, federation.ticks), Slots(MAX_LARGE_REQUESTS)
    blocks = Window(BLOCKS_PER_HOUR, 3600.0)

    async def body_of(request: Request, max_bytes: int) -> bytes:
        if not max_bytes:
            return await read_body(request, federation.policy.max_body_bytes)
        await run_in_threadpool(
            authentication.recognise, federation, request.headers
        )  # the certificate is known before a large body is read
        with large.one():
            return await read_body(request, max_bytes)

    async def answered(request: Request, work: Callable[[bytes], Any], by: Asker, max_bytes: int = 0) -> Response:
        try:
            by.begin()
            result = await run_in_threadpool(work, await body_of(request, max_bytes))
            answer = result if isinstance(result, Response) else JSONResponse(result)
        except Exception as error:
            refused = error if isinstance(error, EnrollError) else unwritable(error)
            if refused is None:
                raise
            refusal = by.refused(refused)
            log.info("%s %s refused: %s", by.client[:12] or by.address, request.url.path, refusal.code)
            answer = JSONResponse(refusal.to_dict(), max(400, refusal.status))
            if not by.client:
                answer.headers["connection"] = "close"  # the next attempt costs a handshake
        if by.client:
            connection_limits.proven(request.scope)
        answer.headers.update(_time(federation))
        return answer

    async def signed_request(
        request: Request,
        answer: Callable[[authentication.Caller, bytes], Any],
        renewing: bool = False,
        max_bytes: int = 0,
    ) -> Response:
        by = Asker(limits, _address(request), signs=True)

        def work(body: bytes) -> Any:
            path = request.url.path
            caller = authentication.authenticate(
                federation, request.headers, request.method, path, body, renewing=renewing, proven=by.proven
            )
            return answer(caller, body)

        return await answered(request, work, by, max_bytes)

    async def unsigned_request(request: Request, work: Callable[[bytes], Any], guarded: bool = True) -> Response:
        return await answered(request, work, Asker(limits, _address(request), guarded=guarded))

    async def unroutable(request: Request, error: Exception) -> Response:
        """Answer a request that matches no route, here or in the TLS proxy, and count it as a failed attempt of its
        address."""
        asked = f"{request.method} {request.url.path}"[:120]
        if isinstance(error, RequestValidationError):
            refusal = EnrollError("E115", f"{asked} does not have the form of a request")
        else:
            assert isinstance(error, HTTPException)
            refusal = EnrollError(ROUTING_ERRORS.get(error.status_code, "E115"), asked)

        def refuse(_: bytes) -> Any:
            raise refusal

        return await unsigned_request(request, refuse)

    app.add_exception_handler(HTTPException, unroutable)
    app.add_exception_handler(RequestValidationError, unroutable)
    app.state.unroutable = unroutable

    @app.get("/v1/enroll/root")
    async def root(request: Request) -> Response:
        root, *earlier = federation.authority.roots()
        pem, old = certificates.text([root]).decode(), [certificates.text([one]).decode() for one in earlier]
        root_answer = {"root": pem, "earlier": old, "version": fedhet.__version__}
        return await unsigned_request(request, lambda _: root_answer, guarded=False)

    @app.post("/v1/enroll/join")
    async def join(request: Request) -> Response:
        address = _address(request)
        return await unsigned_request(request, lambda body: admission.enrol(federation, plain_object(body), address))

    @app.post("/v1/enroll/poll")
    async def poll(request: Request) -> Response:
        by = Asker(limits, _address(request), signs=True)
        return await answered(request, lambda body: admission.poll(federation, plain_object(body), by.proven), by)

    @app.post("/v1/enroll/renew")
    async def renew(request: Request) -> Response:
        return await signed_request(
            request, lambda caller, body: client_requests.renew(federation, caller, plain_object(body)), renewing=True
        )

    @app.post("/v1/enroll/rotate")
    async def rotate(request: Request) -> Response:
        return await signed_request(
            request, lambda caller, body: client_requests.rotate(federation, caller, plain_object(body))
        )

    @app.post("/v1/enroll/profile")
    async def profile(request: Request) -> Response:
        return await signed_request(
            request, lambda caller, body: client_requests.new_profile(federation, caller, plain_object(body))
        )

    @app.post("/v1/enroll/leave")
    async def leave(request: Request) -> Response:
        return await signed_request(request, lambda caller, _: {"state": federation.leave(caller.client).state})

    @app.post("/v1/enroll/whoami")
    async def whoami(request: Request) -> Response:
        return await signed_request(request, lambda caller, _: admission.client_state(federation, caller.client))

    @app.post("/v1/enroll/speed/{size}")
    async def speed(request: Request, size: int) -> Response:
        def block(caller: authentication.Caller, _: bytes) -> Response:
            blocks.take(caller.leaf.node, federation.ticks())
            if not 0 <= size <= BLOCK:
                raise EnrollError("E113", f"at most {BLOCK} bytes")
            return Response(bytes(size), media_type="application/octet-stream")

        return await signed_request(request, block, max_bytes=BLOCK)

    @app.get("/v1/enroll/crl")
    async def crl(request: Request) -> Response:
        return await unsigned_request(request, lambda _: {"crl": federation.crl().decode()}, guarded=False)

    return app


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a request's body of at most `max_bytes` bytes; a larger Content-Length is refused before reading.

    Raises EnrollError E113 if it is larger, E115 if it takes more than `BODY_S`.
    """
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length) > max_bytes:
        await _drain(request, 2 * max_bytes)
        raise EnrollError("E113", f"{length[:20]} bytes, at most {max_bytes}")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise EnrollError("E113", f"more than {max_bytes} bytes")
                parts.append(part)
    except TimeoutError:
        raise EnrollError("E115", f"the body took more than {BODY_S:g} s") from None
    return b"".join(parts)


async def _drain(request: Request, max_bytes: int) -> None:
    """Read and discard a refused body of at most `max_bytes` bytes: closing a connection with unread data resets it,
    and the peer may then lose the answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    return


def plain_object(body: bytes) -> dict[str, Any]:
    """Parse a body as a JSON object. Raises EnrollError E115."""
    try:
        value = canonical_json.parse(body)
    except ValueError as error:
        raise EnrollError("E115", str(error)[:120]) from None
    if not isinstance(value, dict):
        raise EnrollError("E115", "the body is not a JSON object")
    return value


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _time(federation: Federation) -> dict[str, str]:
    return {SERVER_TIME: str(int(federation.clock())), "cache-control": "no-store"}
