"""`transport=superlink`: a real SuperLink and one SuperNode per client on this machine, started and cleaned up here.

They listen on socket files in a temporary folder that this account alone can enter (fedhet/flower/socket_files.py).

Flower starts the ServerApp's process with the paths of configuration and run folder, as `flwr run` does. This is for
trying a method on real processes; real devices enrol in a federation instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedhet.engine.method import Misfit
from fedhet.flower import app_bundle, socket_files
from fedhet.provenance import source_tree
from fedhet.runs import run_config
from fedhet.runs.event_log import read_rows, write_atomic
from fedhet.runs.experiment import Experiment, Progress
from fedhet.runs.result import Result

MAX_SUPERNODES = 30
"""SuperNodes on one machine, at most: each is two processes of over 100 MB."""
COMMAND_S = 120.0
"""Seconds for one `flwr` command, which a stopped SuperLink never answers."""

STATUS_INTERVAL_S = 5.0
"""Seconds between status requests."""

BEGIN_S = 180.0
"""Seconds for a submitted run to begin."""


class SuperLinkError(RuntimeError):
    """Flower's processes failed; the message contains the end of the log."""


@dataclass(frozen=True)
class LocalSuperLink:
    """The transport `superlink`: a SuperLink and one SuperNode per client on this machine, in real time."""

    name: ClassVar[str] = "superlink"

    def check(self, experiment: Experiment) -> None:
        """Raises Misfit for more than `MAX_SUPERNODES` clients."""
        if len(experiment.clients) > MAX_SUPERNODES:
            raise Misfit(
                f"{len(experiment.clients)} SuperNodes are too many for one machine: fleet.clients={MAX_SUPERNODES}"
            )

    def run(self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None) -> Result:
        """Start the processes and run on them. Raises SuperLinkError with the end of the log if the run fails,
        ValueError if the folder contains an earlier run and `resume` is false."""
        self.check(experiment)
        clients = len(experiment.clients)
        if not resume and (folder / "checkpoint").exists():
            raise ValueError(f"{folder} contains an earlier run")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists():
            write_atomic(folder / "config.yaml", run_config.text(experiment.config))
        with tempfile.TemporaryDirectory(prefix="fedhet-superlink-") as temporary:
            home = Path(temporary)
            with _processes(home) as start:
                start("flower-superlink", "--insecure", *_listen_at(0), "--disable-runtime-dependency-installation")
                _reachable(home)
                for number in range(clients):
                    start("flower-supernode", "--insecure", "--superlink", socket_files.address(0),
                          *_listen_at(1 + number),
                          "--node-config", f"partition-id={number} num-partitions={clients}")  # fmt: skip
                run_id = _submit(home, folder.resolve(), clients)
                _follow(home, folder, run_id, progress)
        return Result.read(folder)


def _listen_at(number: int) -> list[str]:
    host, _, port = socket_files.address(number).rpartition(":")
    return ["--host", host, "--port", port]


def _socket(home: Path, number: int) -> Path:
    """The socket file of a process; 0 is the SuperLink."""
    return home / f"{number}.sock"


def _environment(home: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {"FLWR_HOME": str(home / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    own |= {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2", "OMP_NUM_THREADS": "1"}
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("FEDHET_HOME", "FEDHET_STATE", "FEDHET_PASS"))
    }
    own |= socket_files.environment({socket_files.address(n): _socket(home, n) for n in range(MAX_SUPERNODES + 1)})
    return {
        **inherited,
        **own,
        "PATH": path,
        "PYTHONPATH": source_tree.python_path(),
    }  # without a federation's registry


@contextlib.contextmanager
def _processes(home: Path) -> Iterator[Callable[..., None]]:
    """Yields a function that starts commands in process groups of their own; at the end all groups are killed."""
    running: list[subprocess.Popen[bytes]] = []
    (home / "work").mkdir()
    starting = False
    ends: list[BaseException] = []

    def start(*command: str) -> None:
        nonlocal starting
        log = (home / f"{len(running)}-{command[0]}.log").open("wb")
        environment = _environment(home)
        starting = True  # a signal in between would leave an unrecorded process behind
        try:
            running.append(
                subprocess.Popen(
                    socket_files.command(*command),
                    cwd=home / "work",
                    env=environment,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        finally:
            starting = False
        if ends:
            raise ends[0]

    def interrupted(number: int, _: object) -> None:
        ends.append(SystemExit(143) if number == signal.SIGTERM else KeyboardInterrupt())
        if not starting:
            raise ends[-1]

    # SIGTERM would otherwise leave all processes running; an ignored SIGINT stays ignored
    ours = [signal.SIGTERM, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else [])]
    before = {number: signal.signal(number, interrupted) for number in ours}
    try:
        yield start
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for sign in (15, 9):
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            if sign == 15:
                end = time.monotonic() + 5
                while time.monotonic() < end and any(p.poll() is None for p in running):
                    time.sleep(0.05)
        for process in running:
            process.wait()


def _submit(home: Path, folder: Path, clients: int) -> int:
    app = home / "fedhet-run"
    app.mkdir()
    (app / "pyproject.toml").write_text(app_bundle.pyproject(poll=0.5))
    flwr_home = home / "flwr"
    flwr_home.mkdir(exist_ok=True)
    (flwr_home / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "{socket_files.address(0)}"\ninsecure = true\n'
    )
    given = {"config": str(folder / "config.yaml"), "folder": str(folder)}
    text = " ".join(f"{k}={json.dumps(v)}" for k, v in given.items()) + f" wanted={clients}"
    completed = _flwr(home, "run", str(app), "loop", "--run-config", text, "--format", "json")
    try:
        return int(json.loads(completed)["run-id"])
    except (ValueError, KeyError):
        raise SuperLinkError(f"flwr run gave no run id: {completed[-400:]}") from None


def _flwr(home: Path, *arguments: str) -> str:
    try:
        completed = subprocess.run(
            socket_files.command("flwr", *arguments),
            env=_environment(home),
            cwd=home / "work",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )
    except subprocess.TimeoutExpired:
        raise SuperLinkError(f"flwr {arguments[0]} did not end within {COMMAND_S:g} s") from None
    if completed.returncode:
        raise SuperLinkError(f"flwr {arguments[0]}: {(completed.stdout + completed.stderr)[-600:]}")
    return completed.stdout


def _follow(home: Path, folder: Path, run_id: int, progress: Progress | None) -> None:
    """Wait for the result and report progress. Raises SuperLinkError if the run ends without one, or does not begin."""
    begun = asked_at = time.monotonic()
    shown, metrics = -1, folder / "metrics.jsonl"
    while not (folder / "result.json").is_file():
        time.sleep(0.2)
        rows = read_rows(metrics) if progress is not None and metrics.is_file() else []
        if progress is not None and rows and rows[-1]["version"] != shown:
            row, shown = rows[-1], rows[-1]["version"]
            progress({k: row[k] for k in ("t", "version", "accuracy")} | {"tasks": row["client_tasks"], "share": None})
        if time.monotonic() - asked_at > STATUS_INTERVAL_S:
            asked_at = time.monotonic()
            state = json.loads(_flwr(home, "list", "--run-id", str(run_id), "--format", "json"))
            status = str(state["runs"][0]["status"])
            if status.startswith("finished") and not (folder / "result.json").is_file():
                raise SuperLinkError(f"the run is {status}; {_log_end(home, folder, run_id)}")
            if status in ("pending", "starting") and asked_at > begun + BEGIN_S:
                raise SuperLinkError(f"the run is still {status}; {_log_end(home, folder, run_id)}")


def _log_end(home: Path, folder: Path, run_id: int) -> str:
    """The end of a failed run's log; all logs are copied to the run folder."""
    ignore = shutil.ignore_patterns("flwr", "work", "*.sock")
    shutil.copytree(home, folder / "flower-logs", ignore=ignore, dirs_exist_ok=True)
    return f"its log ends: {_flwr(home, 'log', str(run_id), '--show')[-1500:]}"


def _reachable(home: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(socket_files.reachable(_socket(home, 0)))
            return
        time.sleep(0.1)
    log = (home / "0-flower-superlink.log").read_text(errors="replace")
    raise SuperLinkError(f"the SuperLink did not open its socket in {seconds:g} seconds: {log[-600:]}")
