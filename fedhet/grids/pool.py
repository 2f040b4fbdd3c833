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
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict

from fedhet.flower_compat import ErrorCode
from fedhet.grids.arena import Arena, Slot
from fedhet.grids.parcel import Ref, big_arrays, fill, pour, strip

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
    slots: list[Slot] = field(default_factory=list)
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
            refs = self._share(task)
            state_refs = self._lay(task)
            room = 4 * sum(r.size for r in refs) + sum(r.size for r in state_refs)
            slot = self._arena.take(room) if room else None
            task.answer = slot
            light, state = _light(task.message, refs), strip(task.context.state, state_refs)
            task.packed = pickle.dumps((task.number, light, refs, _bare(task.context), state, state_refs, slot))
        return task.packed

    def _share(self, task: Task) -> list[Ref]:
        """Arena references of a message's large arrays; one array object is written once, however many use it."""
        refs = []
        for name, key, array in big_arrays(task.message.content):
            token = id(array.data)
            if token not in self._written:
                slot = self._arena.take(len(array.data))
                if slot is None:
                    continue
                self._arena.view(slot.at, len(array.data))[:] = array.data
                self._written[token] = (array.data, slot, 0)
            data, slot, users = self._written[token]
            self._written[token] = (data, slot, users + 1)
            task.shared.append(token)
            refs.append(Ref(name, key, slot.at, len(array.data)))
        return refs

    def _lay(self, task: Task) -> list[Ref]:
        """Arena references of a client's own state."""
        refs = []
        for name, key, array in big_arrays(task.context.state):
            slot = self._arena.take(len(array.data))
            if slot is None:
                continue
            self._arena.view(slot.at, len(array.data))[:] = array.data
            task.slots.append(slot)
            refs.append(Ref(name, key, slot.at, len(array.data)))
        return refs

    def _collect(self, timeout: float | None) -> None:
        """Take in what workers have finished; wait for one if timeout is None."""
        ready = connection.wait([w.pipe for w in self._workers], timeout)
        for worker in [w for w in self._workers if w.pipe in ready]:
            try:
                number, reply, refs, state, state_refs = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._bury(worker)
                continue
            worker.held.remove(number)
            task = self._tasks[number]
            if state is not None:
                fill(state, state_refs, self._arena, copy=True)
            if len(refs) == 1 and task.answer is not None:
                # one large array, as ours have: its reader keeps the slot for as long as it keeps the array
                ref, slot = refs[0], task.answer
                task.answer = None
                reply.content.array_records[ref.record][ref.key].data = self._arena.lend(ref.at, ref.size, slot)
            elif reply.has_content():
                fill(reply.content, refs, self._arena, copy=True)
            self._finish(number, Outcome(reply, task.context.state if state is None else state))

    def _finish(self, number: int, outcome: Outcome) -> None:
        task = self._tasks.pop(number)
        for slot in [*task.slots, *([task.answer] if task.answer else [])]:
            self._arena.give(slot)
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


def _light(message: Message, refs: list[Ref]) -> Message:
    if not refs:
        return message
    light = Message.__new__(Message)
    light.__dict__.update(message.__dict__)
    light.content = strip(message.content, refs)
    return light


def _bare(context: Context) -> Context:
    return Context(
        context.run_id,
        context.node_id,
        dict(context.node_config),
        RecordDict(),
        dict(context.run_config),
        context.series_id,
    )


def _serve(app: App, pipe: connection.Connection, inherited: list[connection.Connection], arena: Arena) -> None:
    """A worker's life: until the parent is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    for other in inherited:  # or a dead parent's pipes would be held open by its other children
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            number, message, refs, context, state, state_refs, slot = pipe.recv()
        except (EOFError, ConnectionResetError, OSError):
            return
        fill(message.content, refs, arena, copy=False)
        fill(state, state_refs, arena, copy=True)
        context.state = state
        outcome = execute(app, message, context)
        answer, kept = outcome.reply, outcome.state
        out = pour(answer.content, slot, arena) if answer.has_content() else []
        rest = _rest(slot, out)
        changed = bool(kept) or bool(state_refs) or bool(state)
        kept_refs = pour(kept, rest, arena) if changed else []
        pipe.send((number, _light(answer, out), out, strip(kept, kept_refs) if changed else None, kept_refs))


def _rest(slot: Slot | None, used: list[Ref]) -> Slot | None:
    if slot is None:
        return None
    end = max((-(-(r.at + r.size) // 64) * 64 for r in used), default=slot.at)
    return Slot(end, max(0, slot.at + slot.size - end))
