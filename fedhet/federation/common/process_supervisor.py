"""Supervision of child processes: each runs in its own group, is restarted after a delay, and all are ended
together."""

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
"""Names of environment variables that a server's programs inherit, in upper case."""
_PREFIXES = """LC_ XDG_ PYTHON OMP_ MKL_ OPENBLAS_ KMP_ CUDA_ NVIDIA_ NCCL_ HIP_ ROCR_ TORCH PYTORCH_ HF_ TRANSFORMERS_
FLWR_ FEDHET_ DYLD_ COVERAGE_"""
INHERITED_PREFIXES = tuple(_PREFIXES.split())
"""Prefixes of further ones."""
SECRET_PREFIX = "FEDHET_PASSPHRASE"
"""Prefix of variables that are never passed on."""
PASS_ENV = "FEDHET_PASS_ENV"
"""Variable with the comma-separated names of further ones, for apps of the operator's own."""


@dataclass(frozen=True, slots=True)
class Program:
    """A command, its log file, and the seconds between its end and its restart."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    delay_s: float = 1.0


def flower_environment(home: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of Flower's programs: FLWR_HOME, search paths, telemetry off; added to `base`, by default this
    process's environment without passphrases."""
    base = without_secrets() if base is None else base
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    root = os.pathsep.join([str(source_tree.root()), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    own = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    own |= {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    return {**base, **own, "PATH": path, "PYTHONPATH": root}


def inherited() -> dict[str, str]:
    """This process's environment, restricted to the names that may be inherited."""
    more = set(os.environ.get(PASS_ENV, "").split(","))
    return {
        name: value
        for name, value in os.environ.items()
        if name in more
        or name.upper() in INHERITED
        or (name.startswith(INHERITED_PREFIXES) and not name.startswith(SECRET_PREFIX))
    }


def without_secrets() -> dict[str, str]:
    """This process's environment without passphrases."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SECRET_PREFIX)}


def close_memory() -> None:
    """On Linux, stop other processes of this account from reading this process's memory and environment, and disable
    core dumps. Raises OSError if the kernel refuses.

    Child processes are not protected by this, and root can read everything.
    """
    if _LIBC is not None and _LIBC.prctl(_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("the kernel refused to protect this process's memory (PR_SET_DUMPABLE)")


@dataclass
class Supervisor:
    """Keeps programs running. `step` must be called often, always from the same thread: on Linux a program gets SIGTERM
    when the thread that started it ends, so that a killed supervisor leaves nothing behind."""

    programs: Sequence[Program]
    clock: Callable[[], float] = time.monotonic
    starts: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def step(self) -> list[str]:
        """Start what is due; returns the names of the programs that ended since the last step."""
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
        """Send SIGTERM to a running program, which is then restarted."""
        if name in self._running:
            _signal(self._running[name], signal.SIGTERM)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Send SIGTERM to all programs, last started first, and SIGKILL to those still running after `timeout_s`."""
        for process in reversed(list(self._running.values())):
            _signal(process, signal.SIGTERM)
        end = time.monotonic() + timeout_s
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
    except OSError as error:  # a program without a log is better than none
        log.warning("%s cannot be written: %s", path, error.strerror)
        return os.open(os.devnull, os.O_WRONLY)


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PDEATHSIG, signal.SIGTERM)


def _signal(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)
