"""Persistent worker processes that run a ClientApp, forked once, one torch thread each.

The pool computes what it is given, most urgent first, and hands out results when they are asked for; in which order and
by which worker they were computed never shows. A worker that dies is a failed task with its name and cause, and is
replaced. With 0 workers everything runs in the calling process, where a debugger can see it.
"""

from __future__ import annotations

import copy
import heapq
import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict

from fedhet.flower_compat import ErrorCode
from fedhet.grids.arena import Arena, Slot
from fedhet.grids.parcel import Place, pack, unpack

DEPTH = 2
"""Tasks given to a worker ahead of time, so that it never waits for the parent."""

BULKY = 1 << 15
"""Bytes in the pipe above which a task is only given to a worker that is listening: two full pipes would deadlock."""

App = Callable[[Message, Context], Message]


@dataclass(slots=True)
class Task:
    """One message for one client, with the client's context as it stands."""

    number: int
    message: Message
    context: Context
    answer: Slot | None = None
    shared: list[int] = field(default_factory=list)
    packed: bytes = b""


@dataclass(slots=True)
class Outcome:
    """The reply (an error reply if the client raised or its worker died) and the client's state after it."""

    reply: Message
    state: RecordDict


def execute(app: App, message: Message, context: Context) -> Outcome:
    """Run one message. A client that raises keeps the state it had: its half-done changes are thrown away."""
    before = RecordDict(dict(context.state))
    try:
        reply = app(message, context)
    except Exception as error:  # the client's own failure, reported to the server as Flower does
        reason = f"{type(error).__name__}: {error}"
        return Outcome(Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message), before)
    return Outcome(reply, context.state)


@dataclass(slots=True)
class _Worker:
    number: int
    process: BaseProcess
    pipe: connection.Connection
    held: list[int] = field(default_factory=list)


class Pool:
    """`submit` tasks, then `result(number)` in any order. Use as a context manager: workers end with it."""

    def __init__(self, app: App, workers: int, *, isolate: bool = False) -> None:
        """`isolate` copies messages for apps that may change what they receive (needed in this process only)."""
        if workers < 0:
            raise ValueError(f"workers={workers} must be 0 (in this process) or more")
        self._app, self._isolate = app, isolate
        self._tasks: dict[int, Task] = {}
        self._done: dict[int, Outcome] = {}
        self._queue: list[tuple[int, int]] = []
        self._workers: list[_Worker] = []
        self._written: dict[int, tuple[Any, Slot, int]] = {}
        self.deaths = 0
        if workers:
            pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            self._arena = Arena(pages)
            for number in range(workers):
                self._workers.append(self._spawn(number))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, number: int, urgency: int, message: Message, context: Context) -> None:
        """Take a task on. Lower urgency is computed earlier (nanoseconds of virtual arrival, say)."""
        self._tasks[number] = Task(number, message, context)
        if self._workers:
            heapq.heappush(self._queue, (urgency, number))
            self._collect(0)
            self._feed()

    def result(self, number: int) -> Outcome:
        """Wait for a task's outcome and forget it. Raises KeyError if it was never submitted."""
        if not self._workers:
            task = self._tasks.pop(number)
            if self._isolate:
                return execute(self._app, copy.deepcopy(task.message), copy.deepcopy(task.context))
            return execute(self._app, task.message, task.context)
        while number not in self._done:
            if number not in self._tasks:
                raise KeyError(number)
            self._feed()
            self._collect(None)
        self._feed()
        outcome: Outcome = self._done.pop(number)
        return outcome

    def close(self) -> None:
        """End the workers; tasks that are not done are dropped."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    def _spawn(self, number: int) -> _Worker:
        context = get_context("fork")
        ours, theirs = context.Pipe()
        inherited = [w.pipe for w in self._workers] + [ours]
        process = context.Process(
            target=_serve, args=(self._app, theirs, inherited, self._arena), name=f"fedhet-worker-{number}", daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(number, process, ours)

    def _feed(self) -> None:
        while self._queue:
            worker = min(self._workers, key=lambda w: len(w.held))
            if len(worker.held) >= DEPTH:
                return
            urgency, number = self._queue[0]
            packed = self._pack(self._tasks[number])
            if worker.held and len(packed) > BULKY:
                return
            heapq.heappop(self._queue)
            try:
                worker.pipe.send_bytes(packed)
                worker.held.append(number)
            except (BrokenPipeError, ConnectionResetError):
                heapq.heappush(self._queue, (urgency, number))
                self._bury(worker)

    def _pack(self, task: Task) -> bytes:
        """A task as bytes for the pipe, its large arrays laid into the arena; done once per task."""
        if not task.packed:
            lain = 0

            def put(data: Any) -> Place | None:
                nonlocal lain
                place = self._share(task, data)
                lain += place[1] if place else 0
                return place

            body, places = pack((task.message, task.context), put)
            task.answer = self._arena.take(4 * lain) if lain else None
            task.packed = pickle.dumps((task.number, body, places, task.answer))
        return task.packed

    def _share(self, task: Task, data: Any) -> Place | None:
        """Lay an array's data into the arena; one object is laid once, however many tasks use it."""
        token = id(data)
        if token not in self._written:
            slot = self._arena.take(len(data))
            if slot is None:
                return None
            self._arena.view(slot.at, len(data))[:] = data
            self._written[token] = (data, slot, 0)
        held, slot, users = self._written[token]
        self._written[token] = (held, slot, users + 1)
        task.shared.append(token)
        return slot.at, len(data)

    def _collect(self, timeout: float | None) -> None:
        """Take in what workers have finished; wait for one if timeout is None."""
        ready = connection.wait([w.pipe for w in self._workers], timeout)
        for worker in [w for w in self._workers if w.pipe in ready]:
            try:
                number, body, places = pickle.loads(worker.pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                self._bury(worker)
                continue
            worker.held.remove(number)
            task = self._tasks[number]
            views: list[memoryview] = []
            if places and task.answer is not None:
                # what is read from the answer keeps the slot for as long as it is kept itself
                whole, start = self._arena.lend(task.answer), task.answer.at
                views = [whole[at - start : at - start + size] for at, size in places]
                task.answer = None
            reply, state = unpack(body, views)
            for array in [a for r in state.array_records.values() for a in r.values()] if state else []:
                array.data = bytes(array.data)  # states outlive answers
            self._finish(number, Outcome(reply, task.context.state if state is None else state))

    def _finish(self, number: int, outcome: Outcome) -> None:
        task = self._tasks.pop(number)
        if task.answer is not None:
            self._arena.give(task.answer)
        for token in task.shared:
            data, slot, users = self._written.pop(token)
            if users > 1:
                self._written[token] = (data, slot, users - 1)
            else:
                self._arena.give(slot)
        self._done[number] = outcome

    def _bury(self, worker: _Worker) -> None:
        """A worker died: its running task failed, the one queued behind goes back, a new worker takes its place."""
        self.deaths += 1
        worker.pipe.close()
        worker.process.join()
        code = worker.process.exitcode
        cause = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        for position, number in enumerate(worker.held):
            task = self._tasks[number]
            if position == 0:
                reason = f"worker {worker.number} died ({cause})"
                reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=task.message)
                self._finish(number, Outcome(reply, task.context.state))
            else:
                heapq.heappush(self._queue, (0, number))
        self._workers.remove(worker)
        self._workers.append(self._spawn(worker.number))


def _serve(app: App, pipe: connection.Connection, inherited: list[connection.Connection], arena: Arena) -> None:
    """A worker's life: until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    for other in inherited:  # or a dead parent's pipes would be held open by its other children
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            number, body, places, slot = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionResetError, OSError):
            return
        message, context = unpack(body, [arena.view(at, size) for at, size in places])
        had = bool(context.state)
        outcome = execute(app, message, context)
        state = outcome.state if had or outcome.state else None
        answer, where = pack((outcome.reply, state), _Filler(arena, slot))
        pipe.send_bytes(pickle.dumps((number, answer, where)))


class _Filler:
    """Puts an answer's large arrays into its slot one after the other, as far as it reaches."""

    def __init__(self, arena: Arena, slot: Slot | None) -> None:
        self._arena, self._at = arena, slot.at if slot else 0
        self._end = slot.at + slot.size if slot else 0

    def __call__(self, data: Any) -> Place | None:
        at, size = self._at, len(data)
        if at + size > self._end:
            return None
        self._arena.view(at, size)[:] = data
        self._at = at + -(-size // 64) * 64
        return at, size
