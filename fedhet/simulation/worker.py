"""The loop of a worker process, and the formats between it and the pool.

A task is a Flower message with its client's context, or a `JobRecord`: a line of text and one payload, for apps that
need no more. Making and parsing a message costs more than a small job; for a record the worker makes no message, and
the pool makes the reply. A record that the app declines or fails on is run again as a message.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fedhet.flower.execution import App, execute
from fedhet.flower.job_batch import BatchingApp, JobRecord
from fedhet.numerics.shared_memory import Arena, Slot
from fedhet.simulation import worker_channel
from fedhet.simulation.message_packing import Place, pack, unpack
from fedhet.simulation.worker_channel import Channel

SLOT_FACTOR = 5
"""The size of an answer's slot in units of the task's arrays: one for the buffer in which the app writes its payload,
the rest for arrays that are copied there afterwards, such as the client's state."""


class PackedMessage(NamedTuple):
    """A packed (message, context), or a packed (reply, state); the state is None if it is unchanged and empty."""

    number: int
    body: bytes
    places: list[Place]
    slot: Slot | None = None


class PackedRecord(NamedTuple):
    """A packed job record, its payload in the arena or inline. In an answer `text` is None if the job must be run as a
    message; the payload is then the text of the exception, or empty."""

    number: int
    text: str | None
    payload: Place | bytes
    slot: Slot | None = None


def serve(app: App, pipe: socket.socket, inherited: Sequence[Channel], arena: Arena) -> None:
    """The main loop of a worker, until the parent ends. A bundle of tasks has only records, or only messages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts
    for other in inherited:  # otherwise a dead parent's pipes would stay open in its other children
        other.close()
    torch.set_num_threads(1)
    if hasattr(os, "SCHED_BATCH"):
        # a worker that wakes up does not preempt the parent, which may be about to wake the next one; if a sandbox
        # forbids it, only time is lost
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    while True:
        try:
            # Only data of the process that this one was forked from are unpickled: the socket has no name, and no other
            # process has its ends. Data from outside are bytes in it.
            bundle = [pickle.loads(task) for task in pickle.loads(worker_channel.receive(pipe))]
        except (EOFError, OSError):
            return
        answers: list[Any]
        if isinstance(bundle[0], PackedRecord):
            assert isinstance(app, BatchingApp)
            answers = _run_records(app, bundle, arena)
        else:
            answers = [_run_message(app, task, arena) for task in bundle]
        try:
            worker_channel.send(pipe, pickle.dumps(answers))
        except OSError:
            return


def _run_message(app: App, task: PackedMessage, arena: Arena) -> PackedMessage:
    message, context = unpack(task.body, [arena.view(at, size) for at, size in task.places])
    had = bool(context.state)
    outcome = execute(app, message, context)
    state = outcome.state if had or outcome.state else None
    return PackedMessage(task.number, *pack((outcome.reply, state), Filler(arena, task.slot)))


def _run_records(app: BatchingApp, bundle: Sequence[PackedRecord], arena: Arena) -> list[PackedRecord]:
    fillers = [Filler(arena, task.slot) for task in bundle]
    jobs = [
        JobRecord(str(t.text), t.payload if isinstance(t.payload, bytes) else arena.view(*t.payload)) for t in bundle
    ]
    try:
        answers = app.run_batch(jobs, [filler.buffer for filler in fillers])
    except Exception as error:  # each task is run again by itself, which shows whose it is; the pool logs it
        return [PackedRecord(task.number, None, f"{type(error).__name__}: {error}".encode()) for task in bundle]
    if answers is None:
        return [PackedRecord(task.number, None, b"") for task in bundle]
    return [
        PackedRecord(task.number, text, filler(payload) or bytes(payload))
        for task, filler, (text, payload) in zip(bundle, fillers, answers, strict=True)
    ]


class Filler:
    """Copies an answer's large arrays into its slot one after the other, as long as there is space. The slot begins
    with a `buffer` in which the app may write its payload; data in the slot are not copied again."""

    def __init__(self, arena: Arena, slot: Slot | None) -> None:
        self._arena, self.buffer = arena, arena.view(slot.at, slot.size // SLOT_FACTOR) if slot else None
        self._start = slot.at if slot else 0
        self._end = slot.at + slot.size if slot else 0
        self._at = self._start + (-(-(slot.size // SLOT_FACTOR) // 64) * 64 if slot else 0)

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
