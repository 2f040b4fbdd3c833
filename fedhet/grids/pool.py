"""Persistent worker processes that run a ClientApp, forked once, one torch thread each.

The pool computes what it is given, most urgent first, and hands out results when they are asked for; in which order,
by which worker and beside which others they were computed never shows. A worker that dies is a failed task with its
name and cause, and is replaced. With 0 workers everything runs in the calling process, where a debugger can see it.
"""

from __future__ import annotations

import copy
import gc
import heapq
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from flwr.app import Context, Error, Message, RecordDict

from fedhet import heap
from fedhet.flower_compat import ErrorCode
from fedhet.grids.arena import Arena, Slot
from fedhet.grids.parcel import Place, pack, unpack
from fedhet.protocols import keeps

DEPTH = 2
"""Bundles of tasks a worker holds, so that it never waits for the parent."""

BUNDLE = 8
"""Most tasks handed to a worker at once. It may train them side by side, and answers when all are done."""

SHARES = 5
"""An answer's slot is as many times as large as what the task brings: once where the answer is made, the rest for what
is copied there afterwards, such as the client's state."""

BULKY = 1 << 15
"""Bytes in the pipe above which a task is only given to a worker that is listening: two full pipes would deadlock."""

App = Callable[[Message, Context], Message]


@runtime_checkable
class Bundling(Protocol):
    """An app that can answer several messages at once, with what it would answer to each."""

    def __call__(self, message: Message, context: Context) -> Message: ...

    def together(
        self, tasks: Sequence[tuple[Message, Context]], rooms: Sequence[memoryview | None] = ()
    ) -> Sequence[Message] | None:
        """The replies, in order; None if these messages are for one call each. What is large in a reply may be written
        into its room, from where it need not be copied."""
        ...


@dataclass(slots=True)
class Task:
    """One message for one client, with the client's context as it stands."""

    number: int
    message: Message
    context: Context
    alone: bool = False
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


def execute_all(
    app: App, tasks: Sequence[tuple[Message, Context]], rooms: Sequence[memoryview | None] = ()
) -> list[Outcome]:
    """Run several messages: at once if the app can and everything goes well, or else one by one, so that a client that
    raises fails for itself alone."""
    if _bundles(app):
        before = [RecordDict(dict(context.state)) for _, context in tasks]
        try:
            replies = app.together(tasks, rooms)
        except Exception:  # whose it is shows when each is run by itself
            replies = None
        if replies is not None:
            return [Outcome(reply, context.state) for reply, (_, context) in zip(replies, tasks, strict=True)]
        for (_, context), state in zip(tasks, before, strict=True):
            context.state = state
    return [execute(app, message, context) for message, context in tasks]


def _bundles(app: App) -> TypeGuard[Bundling]:
    return keeps(type(app), Bundling)  # type: ignore[arg-type]  # classes are hashable, also that of a Callable


@dataclass(slots=True)
class _Worker:
    number: int
    process: BaseProcess
    pipe: connection.Connection
    held: list[list[int]] = field(default_factory=list)
    """Bundles of task numbers, in the order they were given."""


class Pool:
    """`submit` tasks, then `result(number)` in any order. Use as a context manager: workers end with it."""

    def __init__(self, app: App, workers: int, *, isolate: bool = False) -> None:
        """`isolate` copies messages for apps that may change what they receive (needed in this process only)."""
        if workers < 0:
            raise ValueError(f"workers={workers} must be 0 (in this process) or more")
        self._app, self._isolate = app, isolate
        self._most = BUNDLE if isinstance(app, Bundling) else 1
        self._tasks: dict[int, Task] = {}
        self._done: dict[int, Outcome] = {}
        self._queue: list[tuple[int, int]] = []
        self._workers: list[_Worker] = []
        self._written: dict[int, tuple[Any, Slot, int]] = {}
        self.deaths = 0
        if workers:
            pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            self._arena = Arena(pages)
            heap.keep()
            # what is there by now stays: collections need not walk it here, nor touch and thereby copy it in workers
            gc.collect()
            gc.freeze()
            for number in range(workers):
                self._workers.append(self._spawn(number))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, number: int, urgency: int, message: Message, context: Context) -> None:
        """Take a task on. Lower urgency is computed earlier (nanoseconds of virtual arrival, say)."""
        # what is no training may take long: nobody's answer waits for it
        self._tasks[number] = Task(number, message, context, alone=message.metadata.message_type != "train")
        if self._workers:
            heapq.heappush(self._queue, (urgency, number))
            if len(self._queue) >= self._most * len(self._workers):
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
        if self._workers:
            gc.unfreeze()
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
        """Hand out what waits, shared out evenly over the places that are free."""
        free = sum(DEPTH - len(worker.held) for worker in self._workers)
        while self._queue and free > 0:
            worker = min(self._workers, key=lambda w: len(w.held))
            bundle = self._bundle(min(self._most, -(-len(self._queue) // free)), listening=not worker.held)
            if not bundle:
                return
            free -= 1
            numbers = [number for _, number in bundle]
            try:
                worker.pipe.send_bytes(pickle.dumps([self._tasks[number].packed for number in numbers]))
                worker.held.append(numbers)
            except (BrokenPipeError, ConnectionResetError):
                for entry in bundle:
                    heapq.heappush(self._queue, entry)
                self._bury(worker)

    def _bundle(self, most: int, *, listening: bool) -> list[tuple[int, int]]:
        """The next tasks for a worker, off the queue, with their urgency."""
        bundle: list[tuple[int, int]] = []
        size = 0
        while self._queue and len(bundle) < most:
            task = self._tasks[self._queue[0][1]]
            size += len(self._pack(task))
            if (bundle and task.alone) or (size > BULKY and (bundle or not listening)):
                break
            bundle.append(heapq.heappop(self._queue))
            if task.alone:
                break
        return bundle

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
            task.answer = self._arena.take(SHARES * lain) if lain else None
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
                # the other end is a fork of this process: nothing from outside is unpickled (fedhet/grids/parcel.py)
                answers = pickle.loads(worker.pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                self._bury(worker)
                continue
            worker.held.pop(0)
            for number, body, places in answers:
                self._take_in(number, body, places)

    def _take_in(self, number: int, body: bytes, places: list[Place]) -> None:
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
        """A worker died: its running task failed, those queued behind go back, a new worker takes its place. If it ran
        several at once, each is run again by itself: the one it died of will show."""
        self.deaths += 1
        worker.pipe.close()
        worker.process.join()
        code = worker.process.exitcode
        cause = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        for position, bundle in enumerate(worker.held):
            for number in bundle:
                task = self._tasks[number]
                if position == 0 and len(bundle) == 1:
                    reason = f"worker {worker.number} died ({cause})"
                    reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=task.message)
                    self._finish(number, Outcome(reply, task.context.state))
                else:
                    task.alone = task.alone or position == 0
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
            # written by the process this one was forked from
            bundle = [pickle.loads(task) for task in pickle.loads(pipe.recv_bytes())]
        except (EOFError, ConnectionResetError, OSError):
            return
        tasks = [unpack(body, [arena.view(at, size) for at, size in places]) for _, body, places, _ in bundle]
        had = [bool(context.state) for _, context in tasks]
        fillers = [Filler(arena, slot) for _, _, _, slot in bundle]
        outcomes = execute_all(app, tasks, [filler.room for filler in fillers])
        answers = []
        for (number, _, _, _), outcome, some, filler in zip(bundle, outcomes, had, fillers, strict=True):
            state = outcome.state if some or outcome.state else None
            answers.append((number, *pack((outcome.reply, state), filler)))
        pipe.send_bytes(pickle.dumps(answers))


class Filler:
    """Puts an answer's large arrays into its slot one after the other, as far as it reaches. The slot begins with a
    `room` for whoever makes the answer; what lies there already stays there."""

    def __init__(self, arena: Arena, slot: Slot | None) -> None:
        self._arena, self.room = arena, arena.view(slot.at, slot.size // SHARES) if slot else None
        self._start = slot.at if slot else 0
        self._end = slot.at + slot.size if slot else 0
        self._at = self._start + (-(-(slot.size // SHARES) // 64) * 64 if slot else 0)

    def __call__(self, data: Any) -> Place | None:
        at, size = self._arena.place(data), len(data)
        if self._start <= at and at + size <= self._end:
            return at, size
        at = self._at
        if at + size > self._end:
            return None
        self._arena.view(at, size)[:] = data
        self._at = at + -(-size // 64) * 64
        return at, size
