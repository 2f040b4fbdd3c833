"""A device's node: one long-lived process that polls the server for messages and trains in its main thread.

Flower's SuperNode polls every three seconds and starts a Python process for every message, which loads torch, data and
model again. This node keeps them loaded. Its polling interval is a twentieth of the time since its last job, so polling
adds at most 5 % to any pause; a slow server is polled less often. It runs fedhet's own ClientApp and no code that the
server sends.

    python -m fedhet.deployment.device_node <state folder>
"""

from __future__ import annotations

import logging
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
from flwr.app import Context, Message, RecordDict

from fedhet.display import log_to_terminal
from fedhet.federation.common import private_files
from fedhet.federation.common.errors import unwritable
from fedhet.federation.device.state import Device
from fedhet.flower.execution import App, execute
from fedhet.flower.fleet_api import fleet, forget

log = logging.getLogger("fedhet.node")
MIN_INTERVAL_S, MAX_INTERVAL_S, IDLE_SHARE = 0.1, 3.0, 0.05
"""Bounds of the polling interval, in seconds, and the interval as a share of the time without a job."""
MIN_POLL_MULTIPLE = 4.0
"""Lower bound of the polling interval, as a multiple of the duration of the last poll."""
OFFLINE_S = 3.0
"""Seconds that a restarted node stays offline after a kill, so that the server notices that its jobs are lost."""
MAX_CONTEXTS = 4
"""Runs whose Flower contexts are kept, at most."""
NODE_ID_FILE = "node-id"
"""File in the work folder that contains the node id while the node is online."""


class Connection(Protocol):
    """The connection from which messages are pulled and to which replies are pushed."""

    @property
    def node_id(self) -> int: ...

    def pull(self) -> Message | None: ...

    def push(self, reply: Message, seconds: float) -> bool: ...


@dataclass
class Node:
    """Runs the ClientApp on one message after another."""

    app: App
    config: Mapping[str, Any]
    clock: Callable[[], float] = time.monotonic
    nap: Callable[[float], None] = time.sleep
    contexts: dict[int, Context] = field(default_factory=dict)

    def work(self, connection: Connection) -> None:
        """Poll and answer until an exception ends it."""
        since = self.clock()
        while True:
            asked = self.clock()
            message = connection.pull()
            begun = self.clock()
            if message is None:
                self.nap(polling_interval(begun - since, begun - asked))
                continue
            reply = self.answer(message, connection.node_id)
            since = self.clock()
            accepted = connection.push(reply, since - begun)
            what = f"{message.metadata.message_type} {'failed' if reply.has_error() else 'done'}"
            log.info("%s in %.2f s%s", what, since - begun, "" if accepted else ", too late")

    def answer(self, message: Message, node_id: int) -> Message:
        """The app's reply, or an error reply. The contexts of the last runs are kept in memory."""
        run = message.metadata.run_id
        context = self.contexts.pop(run, None) or Context(run, node_id, dict(self.config), RecordDict(), {})
        self.contexts[run] = context
        while len(self.contexts) > MAX_CONTEXTS:
            del self.contexts[next(iter(self.contexts))]
        outcome = execute(self.app, message, context)
        context.state = outcome.state
        if outcome.reply.has_error():
            log.warning("%s", outcome.reply.error.reason)
        return outcome.reply


def polling_interval(idle: float, took: float = 0.0) -> float:
    """The polling interval in seconds, after `idle` seconds without a job and a last poll of `took` seconds."""
    return min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, IDLE_SHARE * idle, MIN_POLL_MULTIPLE * took))


def run(device: Device) -> None:
    """Go online and work until SIGTERM or SIGINT. A node left online by a killed process is unregistered first."""
    from fedhet.deployment.clientapp import client

    work = device.folder / "work"
    address, root = str(device.about["endpoint"]), str(device.folder / "root.pem")
    key, node_id_file = device.identity.node, work / NODE_ID_FILE
    if node_id_file.exists():
        _unregister_earlier(lambda: forget(address, root, key, int(node_id_file.read_text())))
    config, online = tomllib.loads((work / "node.toml").read_text()), False
    try:
        with fleet(address, root, key) as connection:
            _write_node_id(node_id_file, str(connection.node_id))
            online = True
            log.info("online as %s", connection.node_id)
            Node(client, config).work(connection)
    finally:
        if online:  # fleet() has unregistered it
            node_id_file.unlink(missing_ok=True)


def _write_node_id(node_id_file: Path, text: str) -> None:
    """Write the node id file. If the disk cannot be written, log a warning: after a kill the server then notices a
    minute later."""
    try:
        private_files.write_file(node_id_file, text)
    except OSError as error:
        if unwritable(error) is None:
            raise
        log.warning("%s cannot be written: %s", node_id_file, error.strerror)


def _unregister_earlier(end: Callable[[], None]) -> None:
    log.warning("an earlier node process was killed: its jobs are given up")
    while True:
        try:
            end()
        except httpx.HTTPStatusError:  # unregistered already
            return
        except httpx.TransportError:
            time.sleep(MAX_INTERVAL_S)
        else:
            time.sleep(OFFLINE_S)
            return


def main(folder: str) -> int:
    """Main function of the process. Returns 0 after a signal."""
    log_to_terminal()

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ended)
    with suppress(KeyboardInterrupt):
        run(Device(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
