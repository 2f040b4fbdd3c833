"""Persistent worker processes that run a ClientApp, forked once, one torch thread each.

The pool computes what it is given, most urgent first, and hands out results when they are asked for; in which order,
by which worker and beside which others they were computed never shows. A worker that dies is a failed task with its
name and cause, and is replaced; so is one that is stopped, or computes nothing for minutes
(`fedhet.system.process_liveness`). With 0 workers everything runs in the calling process, where a debugger can see it.
"""

from __future__ import annotations

import copy
import gc
import heapq
import logging
import os
import pickle
import selectors
import socket
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

from flwr.app import Context, Error, Message

from fedhet import native
from fedhet.flower.compat import ErrorCode
from fedhet.flower.execution import App, Outcome, execute
from fedhet.flower.job_batch import BatchingApp, JobRecord
from fedhet.numerics.shared_memory import Arena, Slot
from fedhet.simulation.message_packing import Place, pack, unpack
from fedhet.simulation.worker import SLOT_FACTOR, PackedMessage, PackedRecord, serve
from fedhet.simulation.worker_channel import Channel
from fedhet.system import process_liveness as pulse
from fedhet.system.process_liveness import Liveness

log = logging.getLogger("fedhet.pool")

DEPTH = 2
"""Bundles of tasks a worker holds, so that it never waits for the parent."""

BUNDLE = 8
"""Most tasks handed to a worker at once, if the app can do several at once; it answers when all are done."""

UNDONE = 3
"""Bundles of briefs that come back undone, one after the other, before no more are tried."""

BULKY = 1 << 15
"""Bytes in the pipe above which no more tasks are added to a bundle."""


@dataclass(slots=True)
class Task:
    """One message for one client, with the client's context as it stands."""

    number: int
    message: Message
    context: Context
    alone: bool = False
    """Not beside others, and not as a brief."""
    brief: bool = False
    answer: Slot | None = None
    shared: list[int] = field(default_factory=list)
    packed: bytes = b""


@dataclass(slots=True)
class _Worker:
    number: int
    process: BaseProcess
    line: Channel
    pulse: Liveness
    held: list[list[int]] = field(default_factory=list)
    """Bundles of task numbers, in the order they were given."""


class Pool:
    """`submit` tasks, then `result(number)` in any order. Use as a context manager: workers end with it."""

    def __init__(self, app: App, workers: int, *, isolate: bool = False) -> None:
        """`isolate` copies messages for apps that may change what they receive (needed in this process only)."""
        if workers < 0:
            raise ValueError(f"workers={workers} must be 0 (in this process) or more")
        self._app, self._isolate = app, isolate
        self._briefed = app if isinstance(app, BatchingApp) else None
        self._most = BUNDLE if self._briefed else 1
        self._undone = 0
        self._tasks: dict[int, Task] = {}
        self._done: dict[int, Outcome] = {}
        self._queue: list[tuple[int, int]] = []
        self._workers: list[_Worker] = []
        self._written: dict[int, tuple[Any, Slot, int]] = {}
        self.deaths = 0
        if workers:
            pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            self._arena = Arena(pages)
            self._selector = selectors.PollSelector()
            native.keep_freed_memory()
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
            if not self._collect(pulse.LOOK_S):
                self._look()
        self._feed()
        outcome: Outcome = self._done.pop(number)
        return outcome

    def close(self) -> None:
        """End the workers; tasks that are not done are dropped."""
        for worker in self._workers:
            self._selector.unregister(worker.line)
            worker.line.close()
        for worker in self._workers:
            worker.process.kill()  # it has nothing that anybody would miss, and may be stopped
        for worker in self._workers:
            worker.process.join()
        if self._workers:
            gc.unfreeze()
        self._workers.clear()

    def _spawn(self, number: int) -> _Worker:
        context = get_context("fork")
        pair, theirs = socket.socketpair()
        theirs.setblocking(True)
        ours = Channel(pair)
        inherited = [w.line for w in self._workers] + [ours]
        process = context.Process(
            target=serve, args=(self._app, theirs, inherited, self._arena), name=f"fedhet-worker-{number}", daemon=True
        )
        process.start()
        theirs.close()
        assert process.pid is not None
        worker = _Worker(number, process, ours, Liveness(process.pid))
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _feed(self) -> None:
        """Hand out what waits, shared out evenly over the places that are free."""
        free = sum(DEPTH - len(worker.held) for worker in self._workers)
        while self._queue and free > 0:
            worker = min(self._workers, key=lambda w: len(w.held))
            bundle = self._bundle(min(self._most, -(-len(self._queue) // free)))
            free -= 1
            numbers = [number for _, number in bundle]
            if not worker.held:
                worker.pulse.beat()
            worker.line.send(pickle.dumps([self._tasks[number].packed for number in numbers]))
            if worker.line.over:
                for entry in bundle:
                    heapq.heappush(self._queue, entry)
                self._bury(worker)
                continue
            worker.held.append(numbers)
            self._watch(worker)

    def _watch(self, worker: _Worker) -> None:
        """Be told when it has answered, and when it takes more if there is more."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.line.has_unsent else 0)
        if self._selector.get_key(worker.line).events != events:
            self._selector.modify(worker.line, events, worker)

    def _bundle(self, most: int) -> list[tuple[int, int]]:
        """The next tasks for a worker, off the queue, with their urgency."""
        bundle: list[tuple[int, int]] = []
        size = 0
        while self._queue and len(bundle) < most:
            task = self._tasks[self._queue[0][1]]
            size += len(self._pack(task))
            unlike = bool(bundle) and (task.alone or task.brief != self._tasks[bundle[0][1]].brief)
            if unlike or (size > BULKY and bundle):
                break
            bundle.append(heapq.heappop(self._queue))
            if task.alone:
                break
        return bundle

    def _pack(self, task: Task) -> bytes:
        """A task as bytes for the pipe, its large arrays laid into the arena; done once per task."""
        if not task.packed and not self._pack_brief(task):
            lain = 0

            def put(data: Any) -> Place | None:
                nonlocal lain
                place = self._share(task, data)
                lain += place[1] if place else 0
                return place

            body, places = pack((task.message, task.context), put)
            task.answer = self._arena.take(SLOT_FACTOR * lain) if lain else None
            task.packed = pickle.dumps(PackedMessage(task.number, body, places, task.answer))
        return task.packed

    def _pack_brief(self, task: Task) -> bool:
        """Pack what the app needs of the message, if that will do."""
        if self._briefed is None or task.alone or self._undone >= UNDONE:
            return False
        brief = self._briefed.record_of(task.message, task.context)
        if brief is None:
            return False
        place = self._share(task, brief.payload)
        if place is not None:
            task.answer = self._arena.take(SLOT_FACTOR * place[1])
        payload = bytes(brief.payload) if place is None else place
        task.packed, task.brief = pickle.dumps(PackedRecord(task.number, brief.text, payload, task.answer)), True
        return True

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

    def _collect(self, timeout: float) -> bool:
        """Take in what workers have finished, and write what they have room for; wait up to `timeout` seconds. Whether
        there was anything to do."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            worker: _Worker = key.data
            self._hear(worker)
            worker.line.flush()
            if worker.line.over:
                self._bury(worker)
            else:
                self._watch(worker)
        return bool(ready)

    def _hear(self, worker: _Worker) -> None:
        """Take in what has come from a worker."""
        for frame in worker.line.receive():
            # Unpickled is only what a fork of this process wrote into a pipe without a name; updates in it are bytes,
            # and are decoded at the gate like any other's.
            answers = pickle.loads(frame)
            worker.pulse.beat()
            worker.held.pop(0)
            if isinstance(answers[0], PackedRecord):
                self._count(answers[0])
            for answer in answers:
                self._take_in(answer)

    def _look(self) -> None:
        """Nothing comes: bury workers that are gone although something holds their pipe; end those that are stuck."""
        for worker in list(self._workers):
            if worker.process.exitcode is not None:
                self._bury(worker)
            elif worker.held and worker.pulse.stuck():
                worker.process.kill()
                self._bury(worker, f"it computed nothing for {pulse.PATIENCE_S:g} seconds")

    def _count(self, first: PackedRecord) -> None:
        """Whether briefs are worth trying, from the first answer of a bundle of them."""
        self._undone = self._undone + 1 if first.text is None else 0
        if self._undone == UNDONE:
            why = bytes(first.payload).decode() or "the app asks for messages"
            log.warning("small jobs are given to workers as whole messages from now on, which is slower: %s", why)

    def _take_in(self, answer: PackedMessage | PackedRecord) -> None:
        task = self._tasks[answer.number]
        if isinstance(answer, PackedMessage):
            reply, state = unpack(answer.body, self._read(task, answer.places))
            for array in [a for r in state.array_records.values() for a in r.values()] if state else []:
                array.data = bytes(array.data)  # states outlive answers
            self._finish(task, Outcome(reply, task.context.state if state is None else state))
        elif answer.text is None:
            self._again(task)
            heapq.heappush(self._queue, (0, task.number))
        else:
            assert self._briefed is not None
            payload = answer.payload if isinstance(answer.payload, bytes) else self._read(task, [answer.payload])[0]
            reply = self._briefed.reply(task.message, JobRecord(answer.text, payload))
            self._finish(task, Outcome(reply, task.context.state))

    def _again(self, task: Task) -> None:
        """By itself, and whole."""
        self._release(task)
        task.alone, task.brief, task.packed = True, False, b""

    def _read(self, task: Task, places: list[Place]) -> list[memoryview]:
        """What lies at these places of the task's answer, and keeps the slot for as long as it is kept itself."""
        if not places or task.answer is None:
            return []
        whole, start = self._arena.lend(task.answer), task.answer.at
        task.answer = None
        return [whole[at - start : at - start + size] for at, size in places]

    def _finish(self, task: Task, outcome: Outcome) -> None:
        del self._tasks[task.number]
        self._release(task)
        self._done[task.number] = outcome

    def _release(self, task: Task) -> None:
        """Give back what the task has in the arena."""
        if task.answer is not None:
            self._arena.give(task.answer)
            task.answer = None
        for token in task.shared:
            data, slot, users = self._written.pop(token)
            if users > 1:
                self._written[token] = (data, slot, users - 1)
            else:
                self._arena.give(slot)
        task.shared.clear()

    def _bury(self, worker: _Worker, cause: str = "") -> None:
        """A worker died: its running task failed, those queued behind go back, a new worker takes its place. If it ran
        several at once, each is run again by itself: the one it died of will show."""
        self._hear(worker)  # what it had answered before counts
        self.deaths += 1
        self._selector.unregister(worker.line)
        worker.line.close()
        worker.process.join(pulse.GRACE_S)
        if worker.process.exitcode is None:  # it closed its end, or it is stopped as it ends
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode
        cause = cause or (f"signal {-code}" if code is not None and code < 0 else f"exit code {code}")
        for position, bundle in enumerate(worker.held):
            for number in bundle:
                task = self._tasks[number]
                if position == 0 and len(bundle) == 1:
                    reason = f"worker {worker.number} died ({cause})"
                    reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=task.message)
                    self._finish(task, Outcome(reply, task.context.state))
                else:
                    if position == 0 and not task.alone:
                        self._again(task)
                    heapq.heappush(self._queue, (0, number))
        self._workers.remove(worker)
        self._workers.append(self._spawn(worker.number))
