"""Programs that are kept running: started in groups of their own, restarted after a delay, ended together."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhet.provenance import source_tree

log = logging.getLogger("fedhet.federation")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PDEATHSIG, _DUMPABLE = 1, 4
_NAMES = """HOME LANG LANGUAGE LD_LIBRARY_PATH LOGNAME PATH SHELL TERM TMPDIR TZ USER VIRTUAL_ENV SSL_CERT_FILE
SSL_CERT_DIR REQUESTS_CA_BUNDLE HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY"""
INHERITED = frozenset(_NAMES.split())
"""Variables that a server's programs get, in capitals."""
_BEGIN = """LC_ XDG_ PYTHON OMP_ MKL_ OPENBLAS_ KMP_ CUDA_ NVIDIA_ NCCL_ HIP_ ROCR_ TORCH PYTORCH_ HF_ TRANSFORMERS_
FLWR_ FEDHET_ DYLD_ COVERAGE_"""
FAMILIES = tuple(_BEGIN.split())
"""And those that begin so."""
SECRET = "FEDHET_PASSPHRASE"
"""What begins so stays here."""
PASS_ENV = "FEDHET_PASS_ENV"
"""Names of further ones, with commas between: what an app of the operator's own needs, and may read."""


@dataclass(frozen=True, slots=True)
class Program:
    """A command, its log file, and how many seconds pass between its end and its next start."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    delay_s: float = 1.0


def flower_environment(home: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which Flower's programs find one another and our code, and tell nobody outside; over this
    process's own, or another one."""
    base = without_secrets() if base is None else base
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    root = os.pathsep.join([str(source_tree.root()), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    own = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    own |= {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    return {**base, **own, "PATH": path, "PYTHONPATH": root}


def inherited() -> dict[str, str]:
    """This process's variables without those that may be a secret of its own."""
    more = set(os.environ.get(PASS_ENV, "").split(","))
    return {
        name: value
        for name, value in os.environ.items()
        if name in more or name.upper() in INHERITED or (name.startswith(FAMILIES) and not name.startswith(SECRET))
    }


def without_secrets() -> dict[str, str]:
    """This process's variables without a passphrase."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SECRET)}


def close_memory() -> None:
    """Let no other process of this account read this one's memory and environment, nor a core file be written; on
    Linux.

    What it starts is not closed by that. Root reads everything.
    """
    if _LIBC is not None and _LIBC.prctl(_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("the kernel does not close this process's memory")


@dataclass
class Supervisor:
    """Keeps programs running. `step` must be called often, always from the same thread: on Linux a program gets
    SIGTERM when the thread that started it ends, so that nothing is left behind by a supervisor that was killed."""

    programs: Sequence[Program]
    clock: Callable[[], float] = time.monotonic
    starts: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def step(self) -> list[str]:
        """Start what is due; the names of the programs that ended since the last step."""
        ended = []
        for program in self.programs:
            process = self._running.get(program.name)
            if process is not None and process.poll() is not None:
                self.codes[program.name] = process.returncode
                del self._running[program.name]
                self._due[program.name] = self.clock() + program.delay_s
                ended.append(program.name)
            if program.name not in self._running and self.clock() >= self._due.get(program.name, 0.0):
                self._running[program.name] = _start(program)
                self.starts[program.name] = self.starts.get(program.name, 0) + 1
        return ended

    def pid(self, name: str) -> int | None:
        """The process id of a running program."""
        process = self._running.get(name)
        return process.pid if process else None

    def end(self, name: str) -> None:
        """SIGTERM to a running program; it starts again as after any other end."""
        if name in self._running:
            _signal(self._running[name], signal.SIGTERM)

    def stop(self, patience_s: float = 10.0) -> None:
        """SIGTERM to all, last started first; SIGKILL to what is still there after `patience_s`."""
        for process in reversed(list(self._running.values())):
            _signal(process, signal.SIGTERM)
        end = time.monotonic() + patience_s
        while time.monotonic() < end and any(p.poll() is None for p in self._running.values()):
            time.sleep(0.05)
        for process in self._running.values():
            _signal(process, signal.SIGKILL)
            process.wait()
        self._running.clear()


def _start(program: Program) -> subprocess.Popen[bytes]:
    handle = _log(program.log)
    try:
        return subprocess.Popen(
            list(program.command), cwd=program.log.parent, env=dict(program.environment), stdin=subprocess.DEVNULL,
            stdout=handle, stderr=handle, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
    finally:
        os.close(handle)


def _log(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:  # a program that cannot be heard is better than none
        log.warning("%s cannot be written: %s", path, error.strerror)
        return os.open(os.devnull, os.O_WRONLY)


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PDEATHSIG, signal.SIGTERM)


def _signal(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)
