"""A federation of real processes on this machine, with clients behind a TCP relay, for fault injection."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.reliability.relay import Relay
from fedhet.federation.device import join
from fedhet.federation.device.join import Data, Device
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.superlink import SuperLink
from fedhet.provenance import source_tree

MEASURED = {"step_us": 900, "step_iqr_us": 40, "repeats": 9, "batch": 32, "noisy": 0}
ROLES = {"server": "flwr-serverapp", "superlink": "flower-superlink", "client": "fedhet.deployment.device_node"}
"""What is hit, and how its command line is known."""


class Stuck(RuntimeError):
    """Something did not happen in time; the message says what, and the folder holds the logs."""


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition. Raises Stuck."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Stuck(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Target:
    """Clients 0 to n-1 at work. `stack` ends all that was started, and whatever survived it."""

    def __init__(self, folder: Path, clients: int, stack: contextlib.ExitStack) -> None:
        self.folder, self.home, self._stack = folder.resolve(), folder.resolve() / "op", stack
        folder.mkdir(parents=True, exist_ok=True)
        stack.callback(self._sweep)
        door = free_port()
        self.relay = Relay(door)
        stack.callback(self.relay.close)
        path = os.pathsep.join([str(source_tree.root()), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        own = {"FEDHET_HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self._environment = {**os.environ, **own}
        self.federation = Federation.create(self.home, "soak", f"127.0.0.1:{self.relay.port}")
        stack.callback(self.federation.close)
        self.superlink = SuperLink(self.home / "flower")
        self.start("serve", "serve", "--host", "127.0.0.1", "--port", str(door))
        until(self.superlink.listens, 120, "the SuperLink")
        for number in range(clients):
            name, token = self.federation.invite(f"client{number}", "silo")
            join.begin(self.folder / name, token.line, Data("", 0, number, clients), measured=MEASURED)
            self.federation.approve(name)
            join.poll(Device(self.folder / name))
            self.start(name, "client", "run", "--state", str(self.folder / name))
        until(lambda: self._online() == clients, 180, "the clients")

    def start(self, log: str, *words: str) -> subprocess.Popen[bytes]:
        """A `fedhet` command that goes on."""
        with (self.folder / f"{log}.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedhet", *words], env=self._environment, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return process

    def submit(self, run: str, texts: Sequence[str], *, detach: bool) -> subprocess.Popen[bytes]:
        """Begin a run, or go on with it if there is one already; and follow it, or `detach` and leave it alone."""
        out = self.folder / run
        given = ["--resume", str(out)] if (out / "config.yaml").is_file() else [*texts, "--out", str(out)]
        how = ["--detach"] if detach else ["--on-interrupt", "detach"]
        return self.start(run, "submit", *given, *how, "--json")

    def state(self, pid: int) -> Path:
        """The folder of the client whose node this process is."""
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
        return Path(os.fsdecode(words[words.index(b"fedhet.deployment.device_node") + 1]))

    def processes(self, role: str) -> list[int]:
        """The process ids of a role, ours alone."""
        found, mark = [], str(self.folder)
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                known = ROLES[role] in command and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if known and mark in command + (entry / "environ").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
        return sorted(found)

    def name(self, run: str) -> str:
        """The name that a run has for good, from its journal."""
        with contextlib.closing(sqlite3.connect(self.folder / run / "journal.db", timeout=10)) as db:
            return str(db.execute("SELECT id FROM run").fetchone()[0])

    def accepted(self, run: str) -> int:
        """Updates the run's journal holds."""
        path = self.folder / run / "journal.db"
        if not path.is_file():
            return 0
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
            return int(db.execute("SELECT count(*) FROM rows WHERE kind = 'arrived'").fetchone()[0])
        return 0

    def _online(self) -> int:
        """Clients that went online, by their own word: asking the SuperLink starts a program each time."""
        logs = self.folder.glob("client*/work/supernode.log")
        return sum("online as" in log.read_text(errors="replace") for log in logs)

    def _sweep(self) -> None:
        """Whatever a killed parent left behind."""
        for role in ROLES:
            for pid in self.processes(role):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
