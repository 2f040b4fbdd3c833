"""A device's node: one process that stays warm, asks for work often while there is some, and trains in its main thread.

Flower's SuperNode asks every three seconds and starts a new Python for every message, which then loads torch, data and
model anew. This one keeps them, and asks again after a twentieth of the time for which it had nothing to do, so that
waiting for the question adds no more than that to any pause; a slow server is asked less often. It runs fedhet's own
ClientApp and nothing that a server sends it as code.

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
SHORTEST_S, LONGEST_S, SHARE = 0.1, 3.0, 0.05
"""The pause before the next question: a share of the time without work, within these bounds."""
PATIENCE = 4.0
"""And at least so many times what the last answer took."""
GONE_S = 3.0
"""How long a node that was killed stays away, so that the server sees that its jobs are lost."""
RUNS = 4
"""How many runs' contexts are kept."""
MARK = "node-id"
"""In the work folder while the node is online."""


class Carrier(Protocol):
    """Where messages come from and replies go."""

    @property
    def node_id(self) -> int: ...

    def pull(self) -> Message | None: ...

    def push(self, reply: Message, seconds: float) -> bool: ...


@dataclass
class Node:
    """Does what it is asked, one message after another."""

    app: App
    config: Mapping[str, Any]
    clock: Callable[[], float] = time.monotonic
    nap: Callable[[float], None] = time.sleep
    contexts: dict[int, Context] = field(default_factory=dict)

    def work(self, carrier: Carrier) -> None:
        """Until an exception ends it."""
        since = self.clock()
        while True:
            asked = self.clock()
            message = carrier.pull()
            begun = self.clock()
            if message is None:
                self.nap(pause(begun - since, begun - asked))
                continue
            reply = self.answer(message, carrier.node_id)
            since = self.clock()
            told = carrier.push(reply, since - begun)
            what = f"{message.metadata.message_type} {'failed' if reply.has_error() else 'done'}"
            log.info("%s in %.2f s%s", what, since - begun, "" if told else ", too late")

    def answer(self, message: Message, node_id: int) -> Message:
        """The app's reply, or an error reply. A run's context lives as long as this process."""
        run = message.metadata.run_id
        context = self.contexts.pop(run, None) or Context(run, node_id, dict(self.config), RecordDict(), {})
        self.contexts[run] = context
        while len(self.contexts) > RUNS:
            del self.contexts[next(iter(self.contexts))]
        outcome = execute(self.app, message, context)
        context.state = outcome.state
        if outcome.reply.has_error():
            log.warning("%s", outcome.reply.error.reason)
        return outcome.reply


def pause(idle: float, took: float = 0.0) -> float:
    """Seconds to wait before the next question after so many without work, the last of which took `took`."""
    return min(LONGEST_S, max(SHORTEST_S, SHARE * idle, PATIENCE * took))


def run(device: Device) -> None:
    """Go online and work until SIGTERM or SIGINT. An earlier life that was killed is ended first."""
    from fedhet.deployment.clientapp import client

    work = device.folder / "work"
    address, root = str(device.about["endpoint"]), str(device.folder / "root.pem")
    key, mark = device.identity.node, work / MARK
    if mark.exists():
        _end_earlier_life(lambda: forget(address, root, key, int(mark.read_text())))
    config, online = tomllib.loads((work / "node.toml").read_text()), False
    try:
        with fleet(address, root, key) as carrier:
            _leave(mark, str(carrier.node_id))
            online = True
            log.info("online as %s", carrier.node_id)
            Node(client, config).work(carrier)
    finally:
        if online:  # and it has said goodbye by now
            mark.unlink(missing_ok=True)


def _leave(mark: Path, text: str) -> None:
    """Without a mark a node that is killed is missed by the server a minute later, and that is all."""
    try:
        private_files.write_file(mark, text)
    except OSError as error:
        if unwritable(error) is None:
            raise
        log.warning("%s cannot be written: %s", mark, error.strerror)


def _end_earlier_life(end: Callable[[], None]) -> None:
    log.warning("the node was killed before: its jobs are given up")
    while True:
        try:
            end()
        except httpx.HTTPStatusError:  # the server had noticed already
            return
        except httpx.TransportError:
            time.sleep(LONGEST_S)
        else:
            time.sleep(GONE_S)
            return


def main(folder: str) -> int:
    """The process. Returns 0 after a signal."""
    log_to_terminal()

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ended)
    with suppress(KeyboardInterrupt):
        run(Device(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
