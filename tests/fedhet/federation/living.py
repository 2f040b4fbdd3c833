"""A federation of real processes for tests: `fedhet serve`, joined clients, `fedhet client run`, commands as typed."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from fedhet.cli import main
from fedhet.federation.device import join
from fedhet.federation.device.join import Data, Device
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.superlink import SuperLink

ROOT = Path(__file__).resolve().parents[3]
MEASURED = {"step_us": 900, "step_iqr_us": 40, "repeats": 9, "batch": 32, "noisy": 0}


BUSY = 3.0
"""How many times as long everything may take on a machine that has other work."""

PORTS = itertools.cycle(range(20_000, 32_000))
"""Below those that the system gives to whoever asks for any: none of these is taken between choice and use."""
for _ in range(os.getpid() * 37 % 12_000):
    next(PORTS)  # other test processes have others


def free_port():
    for port in PORTS:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port


def until(condition, seconds, what):
    end = time.monotonic() + BUSY * seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


class Living:
    """Clients 0 to n-1, online. `stack` ends what was started."""

    def __init__(self, folder, stack):
        self.folder, self.home, self.stack = folder, folder / "op", stack
        self.port = free_port()
        self.processes = {}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        own = {"FEDHET_HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.environment = {**os.environ, **own}
        Federation.create(self.home, "test", f"127.0.0.1:{self.port}").close()
        self.federation = Federation(self.home)
        stack.callback(self.federation.close)
        self.superlink = SuperLink(self.home / "flower")
        self.serving = self.start("serve", "serve", "--host", "127.0.0.1")
        until(lambda: self.superlink.listens() or self.serving.poll() is not None, 60, "the SuperLink")
        assert self.serving.poll() is None, self.log("serve")

    def command(self, *words):
        return [sys.executable, "-m", "fedhet", *map(str, words)]

    def fedhet(self, *words, code=0):
        """A command's JSON answer; in this process, which has loaded torch already."""
        done = CliRunner().invoke(main.app, [*map(str, words), "--json"], env={"FEDHET_HOME": str(self.home)})
        assert done.exit_code == code, done.output + repr(done.exception)
        return json.loads(done.stdout)

    def start(self, name, *words):
        """A command that goes on."""
        log = self.stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            self.command(*words), env=self.environment, cwd=self.folder, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.processes[name] = process
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def enrol(self, number, clients):
        """A client that may work and does not yet."""
        name, token = self.federation.invite(f"client{number}", "silo")
        state = self.folder / name
        join.begin(state, token.line, Data("", 0, number, clients), measured=MEASURED)
        self.federation.approve(name)
        join.poll(Device(state))
        return state

    def work(self, number):
        """Let an enrolled client work."""
        return self.start(f"client{number}", "client", "run", "--state", self.folder / f"client{number}")

    def online(self, clients, seconds=60):
        """Wait until so many nodes are online."""

        def there():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not dead, self.log(dead[0])
            logs = self.folder.glob("client*/work/supernode.log")  # asking the SuperLink takes a second each time
            return sum("online as" in log.read_text() for log in logs) >= clients

        until(there, seconds, "the clients")


@contextlib.contextmanager
def federation(folder, clients):
    """A served federation with so many clients online."""
    with contextlib.ExitStack() as stack:
        made = Living(folder, stack)
        for number in range(clients):
            made.enrol(number, clients)
        for number in range(clients):
            made.work(number)
        made.online(clients)
        yield made
