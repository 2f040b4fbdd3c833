"""`fedhet serve`: SuperLink and SuperExec on a socket file, the door in front, and both kept true to the registry."""

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
from fedhet.federation.pki.ca import EXPIRING, NOTICE_DAYS
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
HOUSEKEEPING_S = 3600.0
LOCK = "serve.lock"
"""In the federation's folder: held by the process that serves it."""


SET_S = 30.0
"""A clock that is off by more at once than it was before has been set."""


@dataclass
class Dial:
    """Notices that somebody set the time of day."""

    clock: Callable[[], float]
    ticks: Callable[[], float]
    _ahead: float = field(init=False)

    def __post_init__(self) -> None:
        self._ahead = self.clock() - self.ticks()

    def turned(self) -> float:
        """By how many seconds it was set forward (or back, below 0) since the last look; 0 if it was not."""
        ahead = self.clock() - self.ticks()
        by, self._ahead = ahead - self._ahead, ahead
        return by if abs(by) > SET_S else 0.0


@dataclass
class Server:
    """A federation that is being served. `run` blocks until SIGINT or SIGTERM.

    `trusted`: proxies, as addresses or networks, whose X-Forwarded-For is believed. Raises EnrollError E304 or E319.
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
        """Raises EnrollError E319 for a port that is none, and E318 unless it can be listened on."""
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
        """Serve. `--insecure` leaves TLS to a proxy on this machine."""
        now = self.federation.clock()
        self.federation.authority.renew_server(now)
        operator_key.ensure(self.federation.authority)  # of a home that is older than such keys
        self._remind(now)
        self.superlink.prepare(now)
        self.supervisor = Supervisor(self.superlink.programs())
        app = tls_proxy.door(self.federation, service(self.federation), f"https://{superlink.ADDRESS}",
                         tls.trusting(self.superlink.root.read_bytes()), socket=self.superlink.socket)  # fmt: skip
        context, policy = None if self.insecure else self._tls(), self.federation.policy
        guards = Guards(app, context, policy.connections_per_address, open_files(policy.connections), self.proxies)
        config = guards.config(host=self.host, port=self.port, log_level="error", timeout_graceful_shutdown=5)
        self.federation.audit.append("server", "serve", f"{self.host}:{self.port}")
        server = uvicorn.Server(config)
        keeper = threading.Thread(target=self._keep, args=(server, context), name="keeper")
        keeper.start()
        try:
            with ControlSocket(self.federation.folder, self._hear):
                server.run()
        finally:
            self._stop.set()
            keeper.join()
            try:
                self.federation.audit.append("server", "stop", f"{self.host}:{self.port}")
            finally:
                self.federation.close()
        if self._fault is not None:
            raise self._fault

    def _keep(self, server: uvicorn.Server, context: ssl.SSLContext | None) -> None:
        """All of Flower's processes start and end in this one thread (see Supervisor). Without it there is no door."""
        looked = due = noting = self.federation.ticks()
        shown = self._certificate.stat().st_mtime_ns
        dial = Dial(self.federation.clock, self.federation.ticks)
        runs = Runs(self.superlink)
        try:
            while not self._stop.wait(0.2):
                for name in self.supervisor.step():
                    log.warning("%s ended with %s; it is started again", name, self.supervisor.codes[name])
                now = self.federation.ticks()
                if set_by := dial.turned():
                    log.warning("this machine's clock was set by %+.0f s; certificates are judged by it", set_by)
                if now >= due and self._flower_listens():
                    due = now + (1.0 if self._try(self._reconcile) and self._try(runs.step) else 10.0)
                if self.federation.shut_out and now >= noting:  # whether Flower is there or not
                    noting = now + (0.0 if self._try(self._settle) else 10.0)
                replaced = self._certificate.stat().st_mtime_ns != shown  # by `fedhet ca rotate`
                if set_by or replaced or now > looked + HOUSEKEEPING_S:
                    looked = now
                    self._try(partial(self._renew, self.federation.clock(), context))
                    shown = self._certificate.stat().st_mtime_ns
        except Exception as error:
            self._fault = error  # raised where the server is run
        finally:
            self.supervisor.stop()
            server.should_exit = True

    def _hear(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the operator says at the desk; it runs in the desk's thread."""
        if set(request) != {"shut", "reason"}:
            raise EnrollError("E115", "the desk hears {shut, reason}")
        client = self.federation.shut(str(request["shut"]), str(request["reason"]))
        log.warning("%s is shut out, and will be revoked when the registry can be written", client.name)
        return {"name": client.name, "pid": os.getpid()}

    def _settle(self) -> None:
        for name in self.federation.settle():
            log.info("revoked %s, which was shut out before", name)

    def _reconcile(self) -> None:
        for line in superlink.reconcile(self.federation, self.superlink):
            log.info("%s", line)

    def _renew(self, now: float, door: ssl.SSLContext | None) -> None:
        self.federation.authority.renew_server(now)
        self._remind(now)
        if door is not None:
            password = self.federation.authority.lock.password  # now: OpenSSL would ask for it at the terminal
            door.load_cert_chain(self._certificate, password=lambda: password)

    def _remind(self, now: float) -> None:
        left = self.federation.authority.left(now)
        if left is not None and left < NOTICE_DAYS:
            log.warning(EXPIRING, left)

    def _try(self, work: Callable[[], None]) -> bool:
        """Whether it could be done; what Flower or a signer refuses now is tried again later."""
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
