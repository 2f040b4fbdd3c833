"""The enrolment API: `admission` over HTTP, with limits in front of it and the error catalogue behind it.

    GET  /v1/enroll/root   the root certificate, to be compared with a token's hash before anything is said
    POST /v1/enroll/join   token and keys        POST /v1/enroll/poll     what became of it
    POST /v1/enroll/renew  a new certificate     POST /v1/enroll/profile  a new claim
    POST /v1/enroll/rotate new keys of all kinds
    POST /v1/enroll/leave  goodbye               POST /v1/enroll/whoami   for the doctor
    GET  /v1/enroll/crl    the revocation list   POST /v1/enroll/speed/N  takes any body, answers N bytes

Every answer has the server's time in a header, so that a wrong clock is named and not guessed.
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
from fedhet.federation.server.rate_limits import Asker, Limits, Places, Window

log = logging.getLogger("fedhet.federation")
SERVER_TIME = "x-fedhet-server-time"
BODY_S = 10.0
"""Seconds a body may take."""
BLOCK = 1 << 22
"""Most bytes a measurement of a link sends or fetches at once."""
BLOCKS_PER_HOUR = 200
"""Such requests a client may make."""
LARGE_AT_ONCE = 16
"""Such requests that are in memory at a time."""
ASTRAY = {404: "E120", 405: "E121"}
"""What routing refuses with."""
LET_RUN_S = 2.0
"""Seconds for which a body that is refused is read."""


def service(federation: Federation) -> FastAPI:
    """The API for one federation."""
    app = FastAPI(title="fedhet enrolment", version=fedhet.__version__, docs_url=None, redoc_url=None, openapi_url=None,
                  redirect_slashes=False)  # fmt: skip
    limits, large = Limits(federation.policy, federation.ticks), Places(LARGE_AT_ONCE)
    blocks = Window(BLOCKS_PER_HOUR, 3600.0)

    async def body_of(request: Request, most: int) -> bytes:
        if not most:
            return await read_body(request, federation.policy.max_body_bytes)
        await run_in_threadpool(authentication.recognise, federation, request.headers)  # before much of it is read
        with large.one():
            return await read_body(request, most)

    async def answered(request: Request, work: Callable[[bytes], Any], by: Asker, most: int = 0) -> Response:
        try:
            by.begin()
            done = await run_in_threadpool(work, await body_of(request, most))
            answer = done if isinstance(done, Response) else JSONResponse(done)
        except Exception as error:
            refused = error if isinstance(error, EnrollError) else unwritable(error)
            if refused is None:
                raise
            refusal = by.refused(refused)
            log.info("%s %s refused: %s", by.client[:12] or by.address, request.url.path, refusal.code)
            answer = JSONResponse(refusal.to_dict(), max(400, refusal.status))
            if not by.client:
                answer.headers["connection"] = "close"  # the next try costs a handshake
        if by.client:
            connection_limits.proven(request.scope)
        answer.headers.update(_time(federation))
        return answer

    async def sealed(
        request: Request, answer: Callable[[authentication.Caller, bytes], Any], renewing: bool = False, most: int = 0
    ) -> Response:
        by = Asker(limits, _address(request), signs=True)

        def work(body: bytes) -> Any:
            path = request.url.path
            caller = authentication.authenticate(
                federation, request.headers, request.method, path, body, renewing=renewing, proven=by.proven
            )
            return answer(caller, body)

        return await answered(request, work, by, most)

    async def open_to_all(request: Request, work: Callable[[bytes], Any], guarded: bool = True) -> Response:
        return await answered(request, work, Asker(limits, _address(request), guarded=guarded))

    async def astray(request: Request, error: Exception) -> Response:
        """A request that no route takes, here or at the door: an attempt of its address that failed."""
        asked = f"{request.method} {request.url.path}"[:120]
        if isinstance(error, RequestValidationError):
            refusal = EnrollError("E115", f"{asked} does not have the form of a request")
        else:
            assert isinstance(error, HTTPException)
            refusal = EnrollError(ASTRAY.get(error.status_code, "E115"), asked)

        def refuse(_: bytes) -> Any:
            raise refusal

        return await open_to_all(request, refuse)

    app.add_exception_handler(HTTPException, astray)
    app.add_exception_handler(RequestValidationError, astray)
    app.state.astray = astray

    @app.get("/v1/enroll/root")
    async def root(request: Request) -> Response:
        root, *earlier = federation.authority.roots()
        pem, old = certificates.text([root]).decode(), [certificates.text([one]).decode() for one in earlier]
        told = {"root": pem, "earlier": old, "version": fedhet.__version__}
        return await open_to_all(request, lambda _: told, guarded=False)

    @app.post("/v1/enroll/join")
    async def join(request: Request) -> Response:
        address = _address(request)
        return await open_to_all(request, lambda body: admission.enrol(federation, plain_object(body), address))

    @app.post("/v1/enroll/poll")
    async def poll(request: Request) -> Response:
        by = Asker(limits, _address(request), signs=True)
        return await answered(request, lambda body: admission.poll(federation, plain_object(body), by.proven), by)

    @app.post("/v1/enroll/renew")
    async def renew(request: Request) -> Response:
        return await sealed(
            request, lambda caller, body: client_requests.renew(federation, caller, plain_object(body)), renewing=True
        )

    @app.post("/v1/enroll/rotate")
    async def rotate(request: Request) -> Response:
        return await sealed(
            request, lambda caller, body: client_requests.rotate(federation, caller, plain_object(body))
        )

    @app.post("/v1/enroll/profile")
    async def profile(request: Request) -> Response:
        return await sealed(
            request, lambda caller, body: client_requests.new_profile(federation, caller, plain_object(body))
        )

    @app.post("/v1/enroll/leave")
    async def leave(request: Request) -> Response:
        return await sealed(request, lambda caller, _: {"state": federation.leave(caller.client).state})

    @app.post("/v1/enroll/whoami")
    async def whoami(request: Request) -> Response:
        return await sealed(request, lambda caller, _: admission.client_state(federation, caller.client))

    @app.post("/v1/enroll/speed/{size}")
    async def speed(request: Request, size: int) -> Response:
        def block(caller: authentication.Caller, _: bytes) -> Response:
            blocks.take(caller.leaf.node, federation.ticks())
            if not 0 <= size <= BLOCK:
                raise EnrollError("E113", f"at most {BLOCK} bytes")
            return Response(bytes(size), media_type="application/octet-stream")

        return await sealed(request, block, most=BLOCK)

    @app.get("/v1/enroll/crl")
    async def crl(request: Request) -> Response:
        return await open_to_all(request, lambda _: {"crl": federation.crl().decode()}, guarded=False)

    return app


async def read_body(request: Request, most: int) -> bytes:
    """A request's body, refused before it is read if it says that it is too large, and while it is read if it is.

    Raises EnrollError E113.
    """
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length) > most:
        await _let_run(request, 2 * most)
        raise EnrollError("E113", f"{length[:20]} bytes, at most {most}")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise EnrollError("E113", f"more than {most} bytes")
                parts.append(part)
    except TimeoutError:
        raise EnrollError("E115", f"the body took more than {BODY_S:g} s") from None
    return b"".join(parts)


async def _let_run(request: Request, most: int) -> None:
    """Read a body that is refused, as far as it is not much too large: a connection that is closed on bytes nobody read
    is reset, and the refusal may be lost with it."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LET_RUN_S):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    return


def plain_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises EnrollError E115."""
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
