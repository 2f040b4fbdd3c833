"""`fedhet client run`: keeps a device's node running and its certificate renewed until the client is revoked or leaves.

A node that ended is restarted. After a kill it first unregisters the killed process (fedhet/deployment/device_node.py).
Flower's own SuperNode, for apps other than fedhet's, cannot do that: the SuperLink refuses it for up to 60 s, until it
has noticed the end of the old one, so it is restarted after 65 s. Before each start the agent asks the server for the
client's state.
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
"""Seconds from the end of a Flower SuperNode to its restart; the SuperLink refuses it before."""
LOCK = "client.lock"
"""Lock file in the state folder, locked by the process that runs this client."""
CHECK_INTERVAL_S = 60.0
"""Seconds between checks of the certificate's age."""
REFRESH_INTERVAL_S = 600.0
"""Seconds between requests to the server for new roots and revocations."""
FINAL = frozenset({"E109", "E202", "E209", "E212"})
"""Error codes that end this client for good."""
FOLDER_FAULTS = frozenset({"E305", "E306", "E316"})
"""Error codes of a faulty state folder, for which retrying is useless."""


@dataclass
class Agent:
    """Runs one device. `run` blocks until `stop` is set, or raises the EnrollError that ends the client.

    `flower` runs Flower's SuperNode instead of fedhet's node; `delay_s` is the pause before that is restarted.
    """

    device: Device
    flower: bool = False
    delay_s: float = REFUSAL_S
    stop: threading.Event = field(default_factory=threading.Event)
    nap: Callable[[threading.Event, float], bool] = threading.Event.wait
    ticks: Callable[[], float] = time.monotonic
    supervisor: Supervisor = field(init=False)
    _disk_full: bool = False

    def __post_init__(self) -> None:
        self.work = self.device.folder / "work"
        self.supervisor = Supervisor(())

    def run(self) -> None:
        """Run until `stop` is set. Must stay in one thread. Raises EnrollError E316, E320 if another process runs this
        client, and a code in `FINAL` or `FOLDER_FAULTS`."""
        _ = self.device.about  # raises E316 for a folder without a client
        with alone(self.device.folder / LOCK, "works for this client"):
            self._run()

    def _run(self) -> None:
        self._wait_for_admission()
        private_files.private_folder(self.work)
        if self.flower:
            self._wait_after_crash()
        self._measure_link()
        self.supervisor = Supervisor(self.programs())
        checked = refreshed = self.ticks()
        trusted = self.device.trust.file.read_bytes()
        try:
            while not self.stop.is_set():
                for name in self.supervisor.step():
                    log.warning("%s ended with %s", name, self.supervisor.codes[name])
                    if name == "supernode":
                        self._wait_for_admission()
                self._write_alive()
                if self.ticks() > checked + CHECK_INTERVAL_S:
                    checked = self.ticks()
                    if checked > refreshed + REFRESH_INTERVAL_S:
                        refreshed = checked
                        self._refresh()
                    self.renew_if_due()
                    if trusted != (trusted := self.device.trust.file.read_bytes()):
                        log.warning("the trust anchors of this device have changed; its node is restarted")
                        self.supervisor.end("supernode")
                self.nap(self.stop, 1.0)
        except FileNotFoundError:
            if (self.device.folder / "client.json").exists():
                raise
            raise EnrollError("E212", f"{self.device.folder} is gone") from None
        finally:
            self.supervisor.stop()
            with contextlib.suppress(OSError):  # read-only: the next agent then waits a minute
                (self.work / "alive").unlink(missing_ok=True)

    def programs(self) -> list[Program]:
        """The programs to run: fedhet's node, or with `flower` SuperNode and SuperExec, connected by a socket file and
        authenticated with a secret."""
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
        """Renew the certificate at two thirds of its lifetime, or if its issuing key is revoked; returns whether it was
        renewed. If the server is out of reach, the next call tries again. Raises an EnrollError with a code in
        `FINAL`."""
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

    def _write_alive(self) -> None:
        """Store the time in the file `alive`. If the disk cannot be written, the agent continues and logs a warning."""
        try:
            private_files.write_file(self.work / "alive", str(int(self.device.clock())))
            self._disk_full = False
        except OSError as error:
            full = unwritable(error)
            if full is None:
                raise
            if not self._disk_full:
                log.warning("%s", full.line)
            self._disk_full = True

    def _wait_for_admission(self) -> None:
        """Wait until the server admits this client. Raises an EnrollError with a code in `FINAL` or `FOLDER_FAULTS`."""
        while not self.stop.is_set():
            try:
                if (self.device.folder / "next").exists():
                    self.device.finish_rotation()  # an interrupted rotation
                if not (self.device.folder / "client.pem").exists() and self.device.about["state"] == "pending":
                    joining.poll(self.device)
                if self.device.clock() > self.device.leaf().not_after:
                    self.device.renew()
                answer = self.device.ask("whoami")
                self.device.note(state=answer["state"])
                return
            except EnrollError as error:
                if error.code in FOLDER_FAULTS:
                    raise
                self.device.note(refused=error.code)
                if error.code in FINAL:
                    raise
                log.warning("%s", error.line)
            self.nap(self.stop, 10.0)

    def _refresh(self) -> None:
        """Fetch new roots and revocations with the server's answer. Raises an EnrollError with a code in `FINAL`."""
        try:
            self.device.ask("whoami")
        except EnrollError as error:
            if error.code in FINAL:
                raise
            log.warning("%s", error.line)

    def _measure_link(self) -> None:
        """Measure the link to the server once, if the device was benchmarked before the server could be reached."""
        known = joining.measured(self.device)
        if self.stop.is_set() or "step_us" not in known or "uplink_bytes_per_s" in known:
            return
        try:
            joining.update_profile(self.device, bandwidth.measure(self.device))
        except EnrollError as error:
            log.warning("the link was not measured: %s", error.line)

    def _wait_after_crash(self) -> None:
        """If an earlier agent was killed (its file `alive` is left), wait until the SuperLink has dropped its
        SuperNode."""
        alive = self.work / "alive"
        if alive.exists():
            # Only the time of day is common to two processes, and it may have been set in between.
            remaining_s = min(int(alive.read_text() or 0) + self.delay_s - self.device.clock(), self.delay_s)
            if remaining_s > 0:
                log.warning("the previous agent was killed; waiting %d s", remaining_s)
                self.nap(self.stop, remaining_s)
