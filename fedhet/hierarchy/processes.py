"""Processes that compute for one server, started when there is work and gone when there is none.

The server lays updates into memory all of them share and sends descriptors of some hundred bytes. Tasks wait in one
queue, each process has at most `AHEAD` of them, and a process that dies loses nothing: what it had not answered is done
by another one, from updates that lie where they lay. One that is stopped or does not go on is as good as dead
(`fedhet.system.process_liveness`), and nothing here blocks on a pipe: what one does not hold yet is written when there
is room.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedhet import native
from fedhet.numerics.shared_memory import Arena, Slot
from fedhet.provenance import source_tree
from fedhet.system import process_liveness as pulse
from fedhet.system.process_liveness import Liveness

AHEAD = 2
"""Tasks given to a process ahead of time."""

TRIES = 3
"""Processes in a row that may die without having done anything."""


@dataclass(slots=True, eq=False)
class Part:
    """A vector in shared memory; the memory returns when nothing refers to `values` any more."""

    at: int
    values: Tensor


@dataclass(slots=True, eq=False)
class Task:
    """What a process is to do (`fedhet.hierarchy.worker`), from `parts`, into `out`. Once it is `done`, `cpu` are the
    seconds it took and `error` says why there is no result, if there is none."""

    asked: Mapping[str, Any]
    parts: Sequence[Part]
    out: Part
    done: bool = False
    cpu: float = 0.0
    error: str = ""


@dataclass(slots=True, eq=False)
class _Process:
    popen: subprocess.Popen[bytes]
    pulse: Liveness
    held: list[int] = field(default_factory=list)
    rest: bytes = b""
    """The beginning of an answer."""
    owed: bytearray = field(default_factory=bytearray)
    """What the pipe had no room for yet."""


class Team:
    """`hold` vectors, `submit` sums of them or `give` any task, `wait` for these. `most` processes at a time, each ends
    after `idle` seconds without work. `started`, `deaths`, `cpu`: processes started, those that died, processor seconds
    in tasks.
    """

    def __init__(self, most: int, idle: float) -> None:
        self.most, self.idle = most, idle
        self.started, self.deaths, self.cpu = 0, 0, 0.0
        self._descriptor = _memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        self._arena = Arena(os.fstat(self._descriptor).st_size, self._descriptor)
        self._loop = native.sum_library()
        self._selector = selectors.DefaultSelector()
        self._processes: list[_Process] = []
        self._queue: deque[int] = deque()
        self._tasks: dict[int, Task] = {}
        self._numbers, self._barren = 0, 0

    @property
    def size(self) -> int:
        """Processes that are there."""
        return len(self._processes)

    @property
    def waiting(self) -> int:
        """Tasks that are not done."""
        return len(self._tasks)

    def room(self, size: int) -> Part:
        """Memory for `size` float32 numbers. Raises MemoryError if there is none left."""
        slot: Slot | None = self._arena.take(4 * size)
        if slot is None:
            raise MemoryError(f"no room for {size} more numbers in the aggregators' memory")
        return Part(slot.at, torch.frombuffer(self._arena.lend(slot), dtype=torch.float32, count=size))

    def hold(self, values: Tensor) -> Part:
        """A copy of a vector where every process sees it."""
        part = self.room(len(values))
        part.values.copy_(values)
        return part

    def submit(self, rows: Sequence[Part], c: Sequence[float], wanted: int) -> Task:
        """Have sum_i c_i rows_i computed by one of `wanted` processes (at least one)."""
        out = self.room(len(rows[0].values))
        asked = {"do": "sum", "out": out.at, "size": len(out.values), "rows": [row.at for row in rows], "c": list(c)}
        return self.give(Task(asked, rows, out), wanted)

    def give(self, task: Task, wanted: int) -> Task:
        """Have a task done by one of `wanted` processes (at least one)."""
        self._numbers += 1
        self._tasks[self._numbers] = task
        self._queue.append(self._numbers)
        self.resize(max(1, wanted))
        self._collect(0.0)
        self._feed()
        return task

    def resize(self, wanted: int) -> None:
        """Start processes up to `wanted`, or end idle ones beyond it."""
        while len(self._processes) < min(self.most, wanted):
            self._start()
        for process in [p for p in self._processes if not p.held][: max(0, len(self._processes) - wanted)]:
            self._end(process)

    def wait(self, tasks: Sequence[Task]) -> None:
        """Until all of these are done. Raises ValueError if one has no result, RuntimeError if processes die one after
        the other."""
        while not all(one.done for one in tasks):
            self.resize(max(1, len(self._processes)))
            self._feed()
            if self._processes and not self._collect(pulse.LOOK_S):  # the last one may have died as it was fed
                self._look()
        for error in [one.error for one in tasks if one.error][:1]:
            raise ValueError(error)

    def close(self) -> None:
        """End all processes. Vectors that are still referred to stay readable."""
        for process in self._processes:
            process.popen.kill()  # nobody will ask for what it may be computing
        for process in list(self._processes):
            self._end(process)
        self._selector.close()
        os.close(self._descriptor)

    def _start(self) -> None:
        command = [sys.executable, "-m", "fedhet.hierarchy.worker", str(self._descriptor), str(self.idle), self._loop]
        popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._descriptor],
            env={**os.environ, "PYTHONPATH": source_tree.python_path(), "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        process = _Process(popen, Liveness(popen.pid))
        assert popen.stdin is not None and popen.stdout is not None
        os.set_blocking(popen.stdin.fileno(), False)
        self._selector.register(popen.stdout, selectors.EVENT_READ, process)
        self._processes.append(process)
        self.started += 1

    def _end(self, process: _Process) -> None:
        """Close its pipes, which ends it, or have it ended; what it had not answered goes back to the front of the
        queue."""
        stdin, stdout = process.popen.stdin, process.popen.stdout
        assert stdin is not None and stdout is not None
        self._selector.unregister(stdout)
        if process.owed:
            self._selector.unregister(stdin)
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        stdout.close()
        try:
            process.popen.wait(pulse.GRACE_S)
        except subprocess.TimeoutExpired:  # it is stopped, or somebody else holds the pipe as well
            process.popen.kill()
            process.popen.wait()
        self._processes.remove(process)
        self._queue.extendleft(reversed(process.held))

    def _feed(self) -> None:
        while self._queue:
            free = [p for p in self._processes if len(p.held) < AHEAD]
            if not free:
                return
            process, number = min(free, key=lambda p: len(p.held)), self._queue.popleft()
            if not process.held:
                process.pulse.beat()
            process.held.append(number)
            line = json.dumps({"id": number, **self._tasks[number].asked}).encode() + b"\n"
            if process.owed:
                process.owed += line
            else:
                self._write(process, line)

    def _write(self, process: _Process, data: bytes) -> None:
        """As much as the pipe takes now; the rest is owed."""
        stdin = process.popen.stdin
        assert stdin is not None
        try:
            rest = data[os.write(stdin.fileno(), data) :]
        except BlockingIOError:
            rest = data
        except BrokenPipeError:
            self._bury(process)
            return
        if rest and not process.owed:
            self._selector.register(stdin, selectors.EVENT_WRITE, process)
        elif process.owed and not rest:
            self._selector.unregister(stdin)
        process.owed[:] = rest

    def _collect(self, timeout: float) -> bool:
        """Take in answers, and write what is owed; wait up to `timeout` seconds. Whether there was anything to do."""
        ready = self._selector.select(timeout)
        for key, events in ready:
            process: _Process = key.data
            if process not in self._processes:  # buried a moment ago
                continue
            if events & selectors.EVENT_WRITE:
                self._write(process, bytes(process.owed))
            elif got := os.read(key.fd, 1 << 16):
                *whole, process.rest = (process.rest + got).split(b"\n")
                for answer in map(json.loads, whole):
                    self._take(process, answer)
            else:
                self._bury(process)
        return bool(ready)

    def _look(self) -> None:
        """Nothing comes: bury those that are gone although their pipes are open, and end those that do not go on."""
        for process in [p for p in self._processes if p.held]:
            if process.popen.poll() is None and process.pulse.stuck():
                process.popen.kill()
                process.popen.wait()
            if process.popen.returncode is not None:
                self._bury(process)

    def _take(self, process: _Process, answer: dict[str, Any]) -> None:
        number = int(answer["id"])
        process.held.remove(number)
        process.pulse.beat()
        one = self._tasks.pop(number)
        one.done, one.cpu, one.error = True, float(answer["cpu"]), str(answer.get("error", ""))
        self.cpu += one.cpu
        self._barren = 0

    def _bury(self, process: _Process) -> None:
        """A process is gone: by itself because it was idle, or it died at work."""
        at_work = bool(process.held)
        self._end(process)
        if at_work and process.popen.returncode != 0:
            self.deaths += 1
            self._barren += 1
            if self._barren >= TRIES:
                raise RuntimeError(
                    f"{TRIES} aggregator processes in a row died at work (exit code {process.popen.returncode})"
                )


def _memory(size: int) -> int:
    """A file without a name, in memory where the system can: nothing is left behind whatever is killed."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("fedhet-aggregators")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
