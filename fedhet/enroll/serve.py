"""`fedhet serve`: SuperLink and SuperExec on loopback, the door in front, and both kept true to the registry."""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from fedhet.enroll import flower, link, proxy
from fedhet.enroll.errors import EnrollError
from fedhet.enroll.federation import Federation
from fedhet.enroll.flower import SuperLink
from fedhet.enroll.processes import Supervisor
from fedhet.enroll.service import service

log = logging.getLogger("fedhet.enroll")
HOUSEKEEPING_S = 3600.0


@dataclass
class Server:
    """A federation that is being served. `run` blocks until SIGINT or SIGTERM."""

    federation: Federation
    host: str = "127.0.0.1"
    port: int = 8443
    flower_port: int = 8000
    insecure: bool = False
    ready: threading.Event = field(default_factory=threading.Event)
    failure: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.insecure and not link.is_loopback(self.host):
            raise EnrollError("E304", f"the address {self.host} can be reached from outside")
        self.superlink = SuperLink(self.federation.folder / "flower", self.flower_port)
        self.supervisor = Supervisor(())

    @property
    def _certificate(self) -> Path:
        return self.federation.folder / "ca" / "server.pem"

    def check_ports(self) -> None:
        """Raises EnrollError E318 unless both ports can be listened on."""
        for host, port in ((self.host, self.port), ("127.0.0.1", self.superlink.port)):
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise EnrollError("E318", f"{host}:{port}: {error.strerror}") from None

    def run(self) -> None:
        """Serve. `--insecure` leaves TLS to a proxy on this machine."""
        now = self.federation.clock()
        self.federation.authority.renew_server(now)
        self.superlink.prepare(now)
        self.supervisor = Supervisor(self.superlink.programs())
        app = proxy.door(self.federation, service(self.federation), f"https://{self.superlink.address}",
                         link.trusting(self.superlink.root.read_bytes()))  # fmt: skip
        config = uvicorn.Config(
            app, host=self.host, port=self.port, log_level="warning", access_log=False, ws="none", server_header=False,
            limit_concurrency=1000, timeout_graceful_shutdown=5,
            ssl_certfile=None if self.insecure else self._certificate,
        )  # fmt: skip
        config.load()
        if config.ssl is not None:
            config.ssl.minimum_version = link.TLS
        self.federation.audit.append("server", "serve", f"{self.host}:{self.port}")
        keeper = threading.Thread(target=self._keep, args=(config,), name="keeper")
        keeper.start()
        try:
            uvicorn.Server(config).run()
        finally:
            self._stop.set()
            keeper.join()
            self.federation.audit.append("server", "stop", f"{self.host}:{self.port}")
            self.federation.close()

    def _keep(self, config: uvicorn.Config) -> None:
        """All of Flower's processes start and end in this one thread (see Supervisor)."""
        looked = due = self.federation.clock()
        try:
            while not self._stop.wait(0.2):
                for name in self.supervisor.step():
                    log.warning("%s ended with %s; it is started again", name, self.supervisor.codes[name])
                now = self.federation.clock()
                if now >= due and self._flower_listens():
                    due = now + (1.0 if self._reconcile() else 10.0)
                if now > looked + HOUSEKEEPING_S:
                    looked = now
                    self.federation.authority.renew_server(now)
                    if config.ssl is not None:
                        config.ssl.load_cert_chain(self._certificate)
        finally:
            self.supervisor.stop()

    def _reconcile(self) -> bool:
        try:
            for line in flower.reconcile(self.federation, self.superlink):
                log.info("%s", line)
        except EnrollError as error:
            self.failure = error.line
            log.error("%s", error.line)
            return False
        return True

    def _flower_listens(self) -> bool:
        if not self.ready.is_set() and self.superlink.listens():
            self.ready.set()
        return self.ready.is_set()
