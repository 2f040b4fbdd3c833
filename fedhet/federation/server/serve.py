"""The server of a federation: SuperLink and SuperExec behind a socket file, the public TLS proxy in front of them, and
a maintenance thread that keeps the SuperLink's nodes, runs and certificates up to date."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from fedhet.federation.common.errors import EnrollError, unwritable
from fedhet.federation.common.process_supervisor import Supervisor
from fedhet.federation.pki import operator_key, tls
from fedhet.federation.pki.ca import EXPIRY_WARNING, NOTICE_DAYS
from fedhet.federation.server import superlink, tls_proxy
from fedhet.federation.server.connection_limits import Guards
from fedhet.federation.server.control_socket import ControlSocket
from fedhet.federation.server.http_api import service
from fedhet.federation.server.open_files import open_files
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.peer_addresses import Proxies
from fedhet.federation.server.run_supervisor import Runs
from fedhet.federation.server.superlink import SuperLink
from fedhet.system import network_port

log = logging.getLogger("fedhet.federation")
RENEWAL_CHECK_S = 3600.0
LOCK = "serve.lock"
"""Lock file in the federation's folder, locked by the process that serves it."""
CLOCK_JUMP_S = 30.0
"""Jump of the time of day against the monotonic clock, in seconds, above which the clock counts as set."""


@dataclass
class ClockWatch:
    """Detects that the time of day was set."""

    clock: Callable[[], float]
    ticks: Callable[[], float]
    _offset: float = field(init=False)

    def __post_init__(self) -> None:
        self._offset = self.clock() - self.ticks()

    def jump(self) -> float:
        """Seconds by which it was set forward (negative: back) since the last call; 0 if it was not."""
        offset = self.clock() - self.ticks()
        by, self._offset = offset - self._offset, offset
        return by if abs(by) > CLOCK_JUMP_S else 0.0


@dataclass
class Server:
    """Serves a federation. `run` blocks until SIGINT or SIGTERM.

    `insecure`: plain HTTP, on loopback only, behind a proxy that terminates TLS. `trusted`: addresses or networks of
    proxies whose X-Forwarded-For is trusted. Raises EnrollError E304 or E319.
    """

    federation: Federation
    host: str = "127.0.0.1"
    port: int = 8443
    insecure: bool = False
    trusted: Sequence[str] = ()
    ready: threading.Event = field(default_factory=threading.Event)
    failure: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _fault: Exception | None = None

    def __post_init__(self) -> None:
        if self.insecure and not tls.is_loopback(self.host):
            raise EnrollError("E304", f"the address {self.host} can be reached from outside")
        self.proxies = Proxies.parse(self.trusted)
        self.superlink = SuperLink(self.federation.folder / "flower")
        self.supervisor = Supervisor(())

    @property
    def _certificate(self) -> Path:
        return self.federation.folder / "ca" / "server.pem"

    def _tls(self) -> ssl.SSLContext:
        return tls.serving(self._certificate, self.federation.authority.lock.password)

    def check_port(self) -> None:
        """Raises EnrollError E319 for an invalid port, E318 for one that cannot be bound."""
        try:
            network_port.check(self.port, least=0)
        except ValueError as error:
            raise EnrollError("E319", f"--port {self.port}: {error}") from None
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise EnrollError("E318", f"{self.host}:{self.port}: {error.strerror}") from None

    def run(self) -> None:
        """Serve until a signal. Raises what stopped the maintenance thread."""
        now = self.federation.clock()
        self.federation.authority.renew_server(now)
        operator_key.ensure(self.federation.authority)  # a federation of an earlier version has none
        self._warn_of_expiry(now)
        self.superlink.prepare(now)
        self.supervisor = Supervisor(self.superlink.programs())
        app = tls_proxy.public_app(self.federation, service(self.federation), f"https://{superlink.ADDRESS}",
                         tls.trusting(self.superlink.root.read_bytes()), socket=self.superlink.socket)  # fmt: skip
        context, policy = None if self.insecure else self._tls(), self.federation.policy
        guards = Guards(app, context, policy.connections_per_address, open_files(policy.connections), self.proxies)
        config = guards.config(host=self.host, port=self.port, log_level="error", timeout_graceful_shutdown=5)
        self.federation.audit.append("server", "serve", f"{self.host}:{self.port}")
        server = uvicorn.Server(config)
        maintenance = threading.Thread(target=self._maintain, args=(server, context), name="maintenance")
        maintenance.start()
        try:
            with ControlSocket(self.federation.folder, self._handle):
                server.run()
        finally:
            self._stop.set()
            maintenance.join()
            try:
                self.federation.audit.append("server", "stop", f"{self.host}:{self.port}")
            finally:
                self.federation.close()
        if self._fault is not None:
            raise self._fault

    def _maintain(self, server: uvicorn.Server, context: ssl.SSLContext | None) -> None:
        """The maintenance thread. All of Flower's processes start and end in it (see `Supervisor`); when it ends, so
        does the proxy."""
        renewed_at = reconcile_at = settle_at = self.federation.ticks()
        certificate_time = self._certificate.stat().st_mtime_ns
        clock_watch = ClockWatch(self.federation.clock, self.federation.ticks)
        runs = Runs(self.superlink)
        try:
            while not self._stop.wait(0.2):
                for name in self.supervisor.step():
                    log.warning("%s ended with %s; it is restarted", name, self.supervisor.codes[name])
                now = self.federation.ticks()
                if set_by := clock_watch.jump():
                    log.warning("this machine's clock was set by %+.0f s; certificates are checked against it", set_by)
                if now >= reconcile_at and self._flower_listens():
                    reconcile_at = now + (1.0 if self._try(self._reconcile) and self._try(runs.step) else 10.0)
                if self.federation.shut_out and now >= settle_at:  # independent of Flower
                    settle_at = now + (0.0 if self._try(self._settle) else 10.0)
                replaced = self._certificate.stat().st_mtime_ns != certificate_time  # by `fedhet ca rotate`
                if set_by or replaced or now > renewed_at + RENEWAL_CHECK_S:
                    renewed_at = now
                    self._try(partial(self._renew, self.federation.clock(), context))
                    certificate_time = self._certificate.stat().st_mtime_ns
        except Exception as error:
            self._fault = error  # raised again by run
        finally:
            self.supervisor.stop()
            server.should_exit = True

    def _handle(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Handle a request on the control socket, in that socket's thread. Raises EnrollError E115, E210 or E211."""
        if set(request) != {"shut", "reason"}:
            raise EnrollError("E115", "a request has the keys shut and reason")
        client = self.federation.shut(str(request["shut"]), str(request["reason"]))
        log.warning("%s is shut out, and will be revoked when the registry can be written", client.name)
        return {"name": client.name, "pid": os.getpid()}

    def _settle(self) -> None:
        for name in self.federation.settle():
            log.info("revoked %s, which was shut out before", name)

    def _reconcile(self) -> None:
        for line in superlink.reconcile(self.federation, self.superlink):
            log.info("%s", line)

    def _renew(self, now: float, context: ssl.SSLContext | None) -> None:
        self.federation.authority.renew_server(now)
        self._warn_of_expiry(now)
        if context is not None:
            password = (
                self.federation.authority.lock.password
            )  # read before the call: OpenSSL would ask at the terminal
            context.load_cert_chain(self._certificate, password=lambda: password)

    def _warn_of_expiry(self, now: float) -> None:
        left = self.federation.authority.left(now)
        if left is not None and left < NOTICE_DAYS:
            log.warning(EXPIRY_WARNING, left)

    def _try(self, work: Callable[[], None]) -> bool:
        """Whether `work` succeeded. An error of Flower, a signer or the disk is logged, and the work is tried again
        later."""
        try:
            work()
        except Exception as error:
            refused = error if isinstance(error, EnrollError) else unwritable(error)
            if refused is None:
                raise
            self.failure = refused.line
            log.error("%s", refused.line)
            return False
        return True

    def _flower_listens(self) -> bool:
        if not self.ready.is_set() and self.superlink.listens():
            self.ready.set()
        return self.ready.is_set()
