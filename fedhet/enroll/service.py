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
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

import fedhet
from fedhet.enroll import admission, certificates
from fedhet.enroll.errors import EnrollError
from fedhet.enroll.federation import Federation
from fedhet.enroll.limits import Window

log = logging.getLogger("fedhet.enroll")
SERVER_TIME = "x-fedhet-server-time"
BODY_S = 10.0
"""Seconds a body may take."""
BLOCK = 1 << 22
"""Most bytes a measurement of a link sends or fetches at once."""
BLOCKS_PER_HOUR = 200
"""Such requests a client may make."""
GUESSES = frozenset({"E102", "E106", "E107", "E111", "E205", "E208"})
"""Refusals that count as failed attempts of an address."""

Answer: TypeAlias = Callable[[admission.Caller, Any], Any]


def service(federation: Federation) -> FastAPI:
    """The API for one federation."""
    app = FastAPI(title="fedhet enrolment", version=fedhet.__version__, docs_url=None, redoc_url=None, openapi_url=None)
    requests = Window(federation.policy.requests_per_minute, 60.0)
    failures = Window(federation.policy.failures_per_hour, 3600.0)
    blocks = Window(BLOCKS_PER_HOUR, 3600.0)

    async def limited(
        request: Request, work: Callable[[bytes], Any], *, guarded: bool = True, most: int = 0
    ) -> Response:
        address, now = request.client.host if request.client else "", federation.ticks()
        try:
            requests.take(address, now)
            if guarded:
                failures.check(address, now)
            body = await read_body(request, most or federation.policy.max_body_bytes)
            done = await run_in_threadpool(work, body)
            return done if isinstance(done, Response) else JSONResponse(done, headers=_time(federation))
        except EnrollError as error:
            if error.code in GUESSES:
                failures.add(address, now)
            log.info("%s %s refused: %s", address, request.url.path, error.code)
            return JSONResponse(error.to_dict(), max(400, error.status), headers=_time(federation))

    def sealed(
        request: Request, answer: Callable[[admission.Caller, Any], Any], renewing: bool = False
    ) -> Awaitable[Response]:
        def work(body: bytes) -> Any:
            path = request.url.path
            caller = admission.authenticate(federation, request.headers, request.method, path, body, renewing=renewing)
            return answer(caller, _object(body))

        return limited(request, work)

    @app.get("/v1/enroll/root")
    async def root(request: Request) -> Response:
        root, *earlier = federation.authority.roots()
        pem, old = certificates.text([root]).decode(), [certificates.text([one]).decode() for one in earlier]
        told = {"root": pem, "earlier": old, "version": fedhet.__version__}
        return await limited(request, lambda _: told, guarded=False)

    @app.post("/v1/enroll/join")
    async def join(request: Request) -> Response:
        address = request.client.host if request.client else ""
        return await limited(request, lambda body: admission.enrol(federation, _object(body), address))

    @app.post("/v1/enroll/poll")
    async def poll(request: Request) -> Response:
        return await limited(request, lambda body: admission.poll(federation, _object(body)))

    @app.post("/v1/enroll/renew")
    async def renew(request: Request) -> Response:
        return await sealed(request, lambda caller, body: admission.renew(federation, caller, body), renewing=True)

    @app.post("/v1/enroll/rotate")
    async def rotate(request: Request) -> Response:
        return await sealed(request, lambda caller, body: admission.rotate(federation, caller, body))

    @app.post("/v1/enroll/profile")
    async def profile(request: Request) -> Response:
        return await sealed(request, lambda caller, body: admission.new_profile(federation, caller, body))

    @app.post("/v1/enroll/leave")
    async def leave(request: Request) -> Response:
        return await sealed(request, lambda caller, _: {"state": federation.leave(caller.client).state})

    @app.post("/v1/enroll/whoami")
    async def whoami(request: Request) -> Response:
        return await sealed(request, lambda caller, _: admission.standing(federation, caller.client))

    @app.post("/v1/enroll/speed/{size}")
    async def speed(request: Request, size: int) -> Response:
        def work(body: bytes) -> Response:
            caller = admission.authenticate(federation, request.headers, request.method, request.url.path, body)
            blocks.take(caller.leaf.node, federation.ticks())
            if not 0 <= size <= BLOCK:
                raise EnrollError("E113", f"at most {BLOCK} bytes")
            return Response(bytes(size), media_type="application/octet-stream", headers=_time(federation))

        return await limited(request, work, most=BLOCK)

    @app.get("/v1/enroll/crl")
    async def crl(request: Request) -> Response:
        return await limited(request, lambda _: {"crl": federation.crl().decode()}, guarded=False)

    return app


async def read_body(request: Request, most: int) -> bytes:
    """A request's body, refused before it is read if it says that it is too large, and while it is read if it is.

    Raises EnrollError E113.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
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


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise EnrollError("E115", "the body is not JSON") from None
    if not isinstance(value, dict):
        raise EnrollError("E115", "the body is not a JSON object")
    return value


def _time(federation: Federation) -> dict[str, str]:
    return {SERVER_TIME: str(int(federation.clock())), "cache-control": "no-store"}
