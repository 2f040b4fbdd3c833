"""`fedhet client run`: keeps a device's node running, its certificate young, and stops when it is not wanted.

A node that ended starts again soon; one that was killed takes its earlier life offline first
(fedhet/deployment/device_node.py). Flower's own SuperNode, for other apps than fedhet's, cannot do that: it is refused
for up to 60 seconds, until the SuperLink has noticed, so the next one starts 65 s after. The device asks its server
first, and a client that was revoked or left does not try again.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError, unwritable
from fedhet.federation.common.exclusive import alone
from fedhet.federation.common.process_supervisor import Program, Supervisor, flower_environment
from fedhet.federation.device import bandwidth
from fedhet.federation.device import join as joining
from fedhet.federation.device.node_settings import RESTART_S, node_config
from fedhet.federation.device.state import Device
from fedhet.flower import socket_files

log = logging.getLogger("fedhet.federation")
REFUSAL_S = 65.0
"""Seconds after its end at which a SuperNode of Flower's is admitted again."""
LOCK = "client.lock"
"""In the state folder: held by the process that works for this client."""
CHECK_S = 60.0
"""How often the certificate's age is looked at."""
REFRESH_S = 600.0
"""How often the server is asked, by a device at work too, whether its issuing key is still to be believed."""
FINAL = frozenset({"E109", "E202", "E209", "E212"})
"""Answers after which this client has no future."""
AT_HOME = frozenset({"E305", "E306", "E316"})
"""Faults of the state folder, which waiting does not mend."""


@dataclass
class Agent:
    """One device at work. `run` blocks until `stop` is set, or raises the EnrollError that ends the client."""

    device: Device
    flower: bool = False
    delay_s: float = REFUSAL_S
    stop: threading.Event = field(default_factory=threading.Event)
    nap: Callable[[threading.Event, float], bool] = threading.Event.wait
    ticks: Callable[[], float] = time.monotonic
    supervisor: Supervisor = field(init=False)
    _full: bool = False

    def __post_init__(self) -> None:
        self.work = self.device.folder / "work"
        self.supervisor = Supervisor(())

    def run(self) -> None:
        """Work until told otherwise. Must stay in one thread. Raises EnrollError E320 if another process works here."""
        _ = self.device.about  # a folder without a client is named as one
        with alone(self.device.folder / LOCK, "works for this client"):
            self._run()

    def _run(self) -> None:
        self._admitted()
        private_files.private_folder(self.work)
        if self.flower:
            self._after_a_crash()
        self._measure_link()
        self.supervisor = Supervisor(self.programs())
        looked = refreshed = self.ticks()
        trusted = self.device.trust.file.read_bytes()
        try:
            while not self.stop.is_set():
                for name in self.supervisor.step():
                    log.warning("%s ended with %s", name, self.supervisor.codes[name])
                    if name == "supernode":
                        self._admitted()
                self._mark()
                if self.ticks() > looked + CHECK_S:
                    looked = self.ticks()
                    if looked > refreshed + REFRESH_S:
                        refreshed = looked
                        self._refresh()
                    self.renew_if_due()
                    if trusted != (trusted := self.device.trust.file.read_bytes()):
                        log.warning("whom this device trusts has changed; its node starts again")
                        self.supervisor.end("supernode")
                self.nap(self.stop, 1.0)
        except FileNotFoundError:
            if (self.device.folder / "client.json").exists():
                raise
            raise EnrollError("E212", f"{self.device.folder} is gone") from None
        finally:
            self.supervisor.stop()
            with contextlib.suppress(OSError):  # read-only: the next life waits for a minute in vain, if it asks
                (self.work / "alive").unlink(missing_ok=True)

    def programs(self) -> list[Program]:
        """The node; or with `flower` SuperNode and SuperExec, which runs the client's tasks: they speak over a socket
        file, with a secret."""
        folder, work = self.device.folder.resolve(), self.work.resolve()
        private_files.private_folder(work / "home")
        private_files.write_file(work / "node.toml", node_config(self.device))
        environment = {**flower_environment(work / "home"), "FEDHET_STATE": str(folder)}
        if not self.flower:
            own = [sys.executable, "-m", "fedhet.deployment.device_node", str(folder)]
            return [Program("supernode", own, work / "supernode.log", environment, RESTART_S)]
        at = socket_files.address(0)
        host, _, port = at.rpartition(":")
        environment |= socket_files.environment({at: work / "supernode.sock"}, self.device.trust.file.resolve())
        private_files.write_file(work / "superexec.secret", secrets.token_urlsafe(48))
        secret = ["--superexec-auth-secret-file", str(work / "superexec.secret")]
        trust, key = str(folder / "root.pem"), str(folder / "node.key")
        node = ["flower-supernode", "--superlink", str(self.device.about["endpoint"]), "--root-certificates", trust,
                "--auth-supernode-private-key", key, "--node-config", str(work / "node.toml"),
                "--host", host, "--port", port, "--isolation", "process", *secret]  # fmt: skip
        execute = ["flower-superexec", "--runtime-api-address", at, "--insecure", *secret]
        command = socket_files.command
        return [
            Program("supernode", command(*node), work / "supernode.log", environment, self.delay_s),
            Program("superexec", command(*execute), work / "superexec.log", environment, RESTART_S),
        ]

    def renew_if_due(self) -> bool:
        """Renew the certificate at two thirds of its life, or if its issuing key was revoked; whether it was. A server
        out of reach is tried again."""
        if self.device.clock() < self.device.leaf().renew_at and not self.device.superseded():
            return False
        try:
            self.device.renew()
        except (EnrollError, OSError) as error:
            refused = error if isinstance(error, EnrollError) else unwritable(error)
            if refused is None or refused.code in FINAL:
                raise
            log.warning("%s", refused.line)
            return False
        return True

    def _mark(self) -> None:
        """Say that this life goes on; on a disk that takes nothing it goes on all the same, and says so in the log."""
        try:
            private_files.write_file(self.work / "alive", str(int(self.device.clock())))
            self._full = False
        except OSError as error:
            full = unwritable(error)
            if full is None:
                raise
            if not self._full:
                log.warning("%s", full.line)
            self._full = True

    def _admitted(self) -> None:
        """Wait until the server lets this client work. Raises the EnrollError that says that it never will."""
        while not self.stop.is_set():
            try:
                if (self.device.folder / "next").exists():
                    self.device.finish_rotation()  # it was interrupted
                if not (self.device.folder / "client.pem").exists() and self.device.about["state"] == "pending":
                    joining.poll(self.device)
                if self.device.clock() > self.device.leaf().not_after:
                    self.device.renew()
                answer = self.device.ask("whoami")
                self.device.note(state=answer["state"])
                return
            except EnrollError as error:
                if error.code in AT_HOME:
                    raise
                self.device.note(refused=error.code)
                if error.code in FINAL:
                    raise
                log.warning("%s", error.line)
            self.nap(self.stop, 10.0)

    def _refresh(self) -> None:
        """Hear what the server has to say of its keys. Raises the EnrollError that ends this client."""
        try:
            self.device.ask("whoami")
        except EnrollError as error:
            if error.code in FINAL:
                raise
            log.warning("%s", error.line)

    def _measure_link(self) -> None:
        """A device that measured itself but could not reach the server at the time measures its link now, once."""
        known = joining.measured(self.device)
        if self.stop.is_set() or "step_us" not in known or "uplink_bytes_per_s" in known:
            return
        try:
            joining.tell(self.device, bandwidth.measure(self.device))
        except EnrollError as error:
            log.warning("the link was not measured: %s", error.line)

    def _after_a_crash(self) -> None:
        """An earlier agent that left its mark died without saying goodbye: wait until its SuperNode is forgotten."""
        mark = self.work / "alive"
        if mark.exists():
            # the mark is of another process's life: only the time of day joins the two, and it may have been set since
            rest = min(int(mark.read_text() or 0) + self.delay_s - self.device.clock(), self.delay_s)
            if rest > 0:
                log.warning("the last run ended without notice; waiting %d s", rest)
                self.nap(self.stop, rest)
