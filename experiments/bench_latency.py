"""Benchmark of the latency of a round on a live federation of three nodes, with local work that takes no time.

    python experiments/bench_latency.py [--turns 3] [--rounds 3] [--out experiments/results]

flower   Flower as it ships: SuperLink and SuperNodes by their own commands and defaults, TLS and node authentication,
         FedAvg with a ClientApp that returns what it gets; once with its evaluation messages, once without
fedhet   `fedhet serve`, three enrolled clients with `fedhet client run`, and `fedhet submit` of FedAvg with one step of
         a model of the same size; measurements of the clients travel in their training replies, so a round is one phase

Both federations are up on one machine all the time and take turns, so that other load affects both. A round's time is
measured inside each ServerApp; the first round of every run, in which apps are loaded, is reported separately.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fedhet.federation.pki import identity  # noqa: E402
from fedhet.federation.pki.identity import Identity  # noqa: E402
from fedhet.federation.server.superlink import ADDRESS, SuperLink  # noqa: E402
from fedhet.flower.socket_files import command as flower_command  # noqa: E402

NODES = 3
APP = """[project]
name = "empty-rounds"
version = "1.0.0"
description = "rounds without work"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "empty_rounds:server"
clientapp = "empty_rounds:client"
[tool.flwr.app.config]
rounds = 1
evaluate = 1.0
out = ""
"""
# 650 values: as many as our run's model has, a softmax on 64 inputs
MODULE = """import json, os, time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

NODES, VALUES = 3, 650
client = ClientApp()
server = ServerApp()

@client.train()
def train(message, context):
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

@client.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

@server.main()
def main(grid, context):
    run, times = context.run_config, []
    while len(list(grid.get_node_ids())) < NODES:
        time.sleep(0.1)
    arrays = ArrayRecord({"w": Array(np.zeros(VALUES, np.float32))})
    strategy = FedAvg(fraction_evaluate=run["evaluate"], min_evaluate_nodes=NODES if run["evaluate"] else 0)
    strategy.start(grid, arrays, num_rounds=run["rounds"], evaluate_fn=lambda r, a: times.append(time.time()))
    with open(run["out"] + ".part", "w") as file:
        json.dump(times, file)
    os.replace(run["out"] + ".part", run["out"])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} took more than {seconds:g} seconds")
        time.sleep(0.2)


class Processes:
    """Started in groups of their own, ended together."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, []

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        self.running.append(
            subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log,
                             stdin=subprocess.DEVNULL, start_new_session=True)
        )  # fmt: skip

    def stop(self) -> None:
        for sign in (15, 9):
            for process in reversed(self.running):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            end = time.monotonic() + 15
            while sign == 15 and time.monotonic() < end and any(p.poll() is None for p in self.running):
                time.sleep(0.1)

    def processes(self) -> Iterator[Path]:
        """All processes in these groups, in /proc: what was started, and what that started."""
        sessions = {p.pid for p in self.running}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) in sessions or _session_of_parent(entry) in sessions:
                    yield entry

    def memory(self) -> int:
        """Resident bytes."""
        return sum(int((p / "statm").read_text().split()[1]) for p in self.processes()) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Seconds of processor time so far, with those of children that ended."""
        fields = [(p / "stat").read_text().rpartition(")")[2].split() for p in self.processes()]
        return sum(sum(map(int, f[11:15])) for f in fields) / os.sysconf("SC_CLK_TCK")


def _session_of_parent(entry: Path) -> int:
    """A process's parent's session: an agent's programs are in sessions of their own."""
    return os.getsid(int((entry / "stat").read_text().rpartition(")")[2].split()[1]))


def shipped(folder: Path) -> tuple[Processes, Callable[[int, float], list[float]]]:
    """Flower's own federation, and a way to run its rounds: seconds of each."""
    folder.mkdir(mode=0o700)
    link, (host, port) = SuperLink(folder / "link"), ADDRESS.split(":")
    link.prepare(time.time())
    environment = link.environment
    del environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]  # its default
    pair, root = str(link.folder / "loopback.pem"), str(link.root)
    processes = Processes(folder)
    processes.start("superlink", [
        *flower_command("flower-superlink", "--host", host, "--port", port, "--enable-supernode-auth"),
        "--ssl-ca-certfile", root, "--ssl-certfile", pair, "--ssl-keyfile", pair,
        "--database", str(folder / "state.db"), "--disable-runtime-dependency-installation",
    ], environment)  # fmt: skip
    until(link.listens, 90, "the SuperLink")
    for number in range(NODES):
        own = Identity.create(folder / f"node{number}")
        link.register(identity.openssh(own.node.public_key()), f"node{number}")
        processes.start(f"node{number}", [
            *flower_command("flower-supernode", "--superlink", ADDRESS, "--root-certificates", root),
            "--auth-supernode-private-key", str(folder / f"node{number}" / "node.key"),
            "--host", host, "--port", str(free_port()), "--node-config", f"partition-id={number}",
        ], environment)  # fmt: skip
    until(lambda: sum(row["status"] == "online" for row in link.nodes()) == NODES, 120, "the SuperNodes")
    app = folder / "empty-rounds"
    app.mkdir()
    (app / "pyproject.toml").write_text(APP)
    (app / "empty_rounds.py").write_text(MODULE)

    def rounds(number: int, evaluate: float) -> list[float]:
        out = folder / f"times-{time.time_ns()}.json"
        given = f"rounds={number} evaluate={evaluate} out={json.dumps(str(out))}"
        link.flwr("run", str(app), "federation", "--run-config", given)
        until(out.exists, 600, "Flower's run")
        times = json.loads(out.read_text())
        return [b - a for a, b in pairwise(times)]

    return processes, rounds


def ours(folder: Path) -> tuple[Processes, Callable[[int], list[float]]]:
    """An enrolled federation, and a way to run its rounds."""
    folder.mkdir(mode=0o700)
    home = folder / "operator"
    environment = {**os.environ, "FEDHET_HOME": str(home), "PYTHONPATH": str(ROOT)}
    processes = Processes(folder)

    def command(*words: object) -> list[str]:
        return [sys.executable, "-m", "fedhet", *map(str, words)]

    def fedhet(*words: object, **given: str) -> dict:
        done = subprocess.run(command(*words, "--json"), env=environment, capture_output=True, text=True, **given)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return json.loads(done.stdout)

    port = free_port()
    fedhet("ca", "init", "--no-passphrase", "--endpoint", f"127.0.0.1:{port}")
    processes.start("serve", command("serve", "--host", "127.0.0.1"), environment)
    link = SuperLink(home / "flower")
    until(link.listens, 90, "the SuperLink")
    for number in range(NODES):
        state, name = ("--state", folder / f"client{number}"), f"client{number}"
        token = fedhet("enroll", "invite", "--name", name)["token"]
        fedhet("join", "-", "--wait", 0, "--benchmark", 0, "--partition", f"{number}/{NODES}", *state, input=token)
        fedhet("enroll", "approve", name)
        fedhet("client", "poll", *state)
        processes.start(name, command("client", "run", *state), environment)
    until(lambda: sum(row["status"] == "online" for row in link.nodes()) == NODES, 120, "the clients")

    def rounds(number: int) -> list[float]:
        out = folder / f"run-{time.time_ns()}"
        fedhet("submit", "--detach", "--out", out, "strategy=fedavg", "model=softmax", "budget.steps=1",
               "budget.epochs=null", f"stop.versions={number}", "evaluate.every_versions=1000000")  # fmt: skip
        fedhet("follow", out)
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        times = [next(e["t"] for e in events if e["event"] == "assign")]
        times += [e["t"] for e in events if e["event"] == "combined"]
        return [b - a for a, b in pairwise(times)]

    return processes, rounds


@contextlib.contextmanager
def both(folder: Path) -> Iterator[tuple]:
    """The two federations, side by side."""
    with contextlib.ExitStack() as stack:
        flower, flower_rounds = shipped(folder / "flower")
        stack.callback(flower.stop)
        fedhet, fedhet_rounds = ours(folder / "fedhet")
        stack.callback(fedhet.stop)
        yield flower, flower_rounds, fedhet, fedhet_rounds


def table(found: dict[str, list[list[float]]], cpu: dict[str, list[float]], memory: dict[str, int], told: str) -> str:
    """Markdown: medians over all rounds but the first of each run, with the extremes."""
    later = {name: [s for run in runs for s in run[1:]] for name, runs in found.items()}
    first = {name: [run[0] for run in runs] for name, runs in found.items()}
    ours_ = statistics.median(later["fedhet"])
    busy = statistics.median(cpu["fedhet"])
    lines = [
        "| | round (median) | least to most | first round | to fedhet | processor time a round | to fedhet |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, seconds in later.items():
        middle = statistics.median(seconds)
        span, begin = f"{min(seconds):.2f}–{max(seconds):.2f} s", f"{statistics.median(first[name]):.2f} s"
        own = statistics.median(cpu[name])
        times = f"{middle:.2f} s | {span} | {begin} | {middle / ours_:.1f} ×"
        lines.append(f"| {name} | {times} | {own:.1f} s | {own / busy:.1f} × |")
    held = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in memory.items())
    note = "Processor time is of all processes on both sides, and has each run's start of a ServerApp in it."
    return "\n".join([told, "", *lines, "", note, f"Memory of all processes between two runs: {held}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a run, after the first")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results")
    given = parser.parse_args()
    found: dict[str, list[list[float]]] = {"flower, train and evaluate": [], "flower, train only": [], "fedhet": []}
    cpu: dict[str, list[float]] = {name: [] for name in found}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="fedhet-latency-") as folder, both(Path(folder)) as made:
        flower, flower_rounds, fedhet, fedhet_rounds = made
        for turn in range(given.turns):
            for name, runner, work in (
                ("flower, train and evaluate", flower, lambda: flower_rounds(given.rounds + 1, 1.0)),
                ("fedhet", fedhet, lambda: fedhet_rounds(given.rounds + 1)),
                ("flower, train only", flower, lambda: flower_rounds(given.rounds + 1, 0.0)),
            ):
                before = runner.cpu()
                found[name].append(work())
                cpu[name].append((runner.cpu() - before) / (given.rounds + 1))
            print(f"turn {turn}:", {name: [f"{s:.2f}" for s in runs[-1]] for name, runs in found.items()}, flush=True)
        memory = {"flower": flower.memory(), "fedhet": fedhet.memory()}
    from importlib.metadata import version

    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, flwr {version('flwr')}"
    load = f"load {os.getloadavg()[2]:.1f} (15 minutes)"
    command = f"`python experiments/bench_latency.py --turns {given.turns} --rounds {given.rounds}`"
    text = table(found, cpu, memory, f"# A round without work on three live nodes\n\n{command}; {machine}, {load}.")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "bench_latency.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
