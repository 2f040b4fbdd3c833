"""What a worker process does with the tasks it is given, and what crosses between it and the pool.

A task is a whole Flower message with its client's context, or a `JobRecord`: a line of text and one payload, for apps
that can do with that. Messages cost more to make and to take apart than a small job takes; of a brief the worker makes
no message at all, and the pool makes the reply. What a brief cannot do, or fails at, is done again with the message.
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

SHARES = 5
"""An answer's slot is as many times as large as what the task brings: once where the answer is made, the rest for what
is copied there afterwards, such as the client's state."""


class PackedMessage(NamedTuple):
    """A packed message and context on their way, or a packed reply and state. `state` is None where it is as before."""

    number: int
    body: bytes
    places: list[Place]
    slot: Slot | None = None


class PackedRecord(NamedTuple):
    """A brief on its way, its payload in the arena or in the pipe; `text` is None if a message is asked for, and the
    payload then says what was raised, if anything was."""

    number: int
    text: str | None
    payload: Place | bytes
    slot: Slot | None = None


def serve(app: App, pipe: socket.socket, inherited: Sequence[Channel], arena: Arena) -> None:
    """A worker's life: until the parent is gone. A bundle of tasks holds briefs only, or none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    for other in inherited:  # or a dead parent's pipes would be held open by its other children
        other.close()
    torch.set_num_threads(1)
    if hasattr(os, "SCHED_BATCH"):
        # a worker that is woken does not push the parent aside, who may be about to wake the next one; where a sandbox
        # forbids it nothing but time is lost
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    while True:
        try:
            # Unpickled is only what the process wrote that this one was forked from: the pipe has no name, and both its
            # ends have never been anywhere else. What came from outside lies in it as bytes.
            bundle = [pickle.loads(task) for task in pickle.loads(worker_channel.receive(pipe))]
        except (EOFError, OSError):
            return
        answers: list[Any]
        if isinstance(bundle[0], PackedRecord):
            assert isinstance(app, BatchingApp)
            answers = _shortly(app, bundle, arena)
        else:
            answers = [_wholly(app, task, arena) for task in bundle]
        try:
            worker_channel.send(pipe, pickle.dumps(answers))
        except OSError:
            return


def _wholly(app: App, task: PackedMessage, arena: Arena) -> PackedMessage:
    message, context = unpack(task.body, [arena.view(at, size) for at, size in task.places])
    had = bool(context.state)
    outcome = execute(app, message, context)
    state = outcome.state if had or outcome.state else None
    return PackedMessage(task.number, *pack((outcome.reply, state), Filler(arena, task.slot)))


def _shortly(app: BatchingApp, bundle: Sequence[PackedRecord], arena: Arena) -> list[PackedRecord]:
    fillers = [Filler(arena, task.slot) for task in bundle]
    briefs = [
        JobRecord(str(t.text), t.payload if isinstance(t.payload, bytes) else arena.view(*t.payload)) for t in bundle
    ]
    try:
        told = app.run_batch(briefs, [filler.room for filler in fillers])
    except Exception as error:  # whose it is shows when each is run by itself; the pool counts and tells it
        return [PackedRecord(task.number, None, f"{type(error).__name__}: {error}".encode()) for task in bundle]
    if told is None:
        return [PackedRecord(task.number, None, b"") for task in bundle]
    return [
        PackedRecord(task.number, text, filler(payload) or bytes(payload))
        for task, filler, (text, payload) in zip(bundle, fillers, told, strict=True)
    ]


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
