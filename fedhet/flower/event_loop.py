"""The only loop: it joins a server to a Flower Grid and a Clock, and knows nothing of either's kind.

One turn is one instant: take in every reply that is visible, wake the timers that are due, then let the server answer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedhet.engine.inputs import Inputs
from fedhet.engine.server import Send, Server
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.flower import messages as records
from fedhet.flower.compat import ErrorCode
from fedhet.flower.reply_stream import allow
from fedhet.numerics import wire_format
from fedhet.numerics.tree import Schema
from fedhet.numerics.wire_format import MalformedUpdate
from fedhet.protocols import Clock
from fedhet.types import ClientId, Job, JobId, Tree

TTL = 12 * 3600.0
"""Seconds a message may live on a real grid when no job timeout is set."""

GONE = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""What a SuperLink says of a message that it has forgotten, or whose upload broke off."""

REFUSED = re.compile(r"EnrollError: (E21[3-8]: .*)")
"""How an error reply says that a device does not do what a job's configuration asks of it."""

Packed = tuple[Tree | None, ArrayRecord, str]
"""A payload, its record, and its hash if records are sealed."""

Place = tuple[tuple[Any, ...], ...]
"""Of each leaf its name, address, dtype, shape and strides."""


@dataclass
class EventLoop:
    """Carries a server's sends and a grid's replies. `nodes` maps clients to node ids.

    `after_error` hears of every error that a device answers a job with, once the server has.
    `tell` is how the server hears of anything: the server itself, or one that writes down what it hears. `run_id`
    names the run where answers are signed, `order` is the operator's word on `world`. `refused` are the clients that
    were left out because they do not do what the configuration asks of them, and what they said.
    """

    server: Server
    grid: Grid
    clock: Clock
    gate: Gate
    nodes: Callable[[ClientId], int]
    seal: bool = False
    world: str = ""
    timeout: float | None = None
    after_instant: Callable[[], None] = lambda: None
    before_instant: Callable[[], None] = lambda: None
    before_sends: Callable[[], None] = lambda: None
    present: Callable[[ClientId], bool] = lambda client: True
    after_error: Callable[[ClientId, str], None] = lambda client, reason: None
    tell: Inputs = field(init=False)
    run_id: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    order: str = ""
    refused: dict[ClientId, str] = field(default_factory=dict)
    _pending: dict[str, JobId] = field(default_factory=dict)
    _deadlines: dict[JobId, float] = field(default_factory=dict)
    _packed: Packed = field(default_factory=lambda: (None, ArrayRecord(), ""))

    def __post_init__(self) -> None:
        self.tell = self.server
        allow(self.grid, self.allowance)

    def run(self, *, start: bool = True) -> None:
        """Until the server is over. Raises what a plug-in raises, and the clock's `Stalled`."""
        server = self.server
        if start:
            self.tell.start()
        self._answer(self.tell.settle(self.clock.now()))
        while not server.over:
            self.before_instant()
            quiet = self._take_in()
            now = self.clock.now()
            quiet = self._expire(now) and quiet
            quiet = self._release(now) and quiet
            if server.next_timer is not None and server.next_timer <= now + 1e-9:
                self.tell.wake(now)
                quiet = False
            self.before_sends()
            self._answer(self.tell.settle(now))
            self.after_instant()
            if quiet and not server.over:
                self.clock.wait(self._next_time())

    @property
    def settled(self) -> bool:
        """Whether every message on its way belongs to a job the server still waits for: what a checkpoint can hold."""
        return all(job in self.server.inflight for job in self._pending.values())

    def allowance(self, message_id: str) -> int | None:
        """Bytes that the payload of a message's reply may have: what the server expects of the job, None if it no
        longer waits for it; 0 if the message is no job's."""
        if message_id not in self._pending:
            return 0
        job = self.server.inflight.get(self._pending[message_id])
        return None if job is None else wire_format.size(self.server.expects(job))

    def resend(self, job: Job) -> None:
        """Put one outstanding job back on its way, with the payload it had, after a resume."""
        payload = self.server.space.offer(self.server.base(job.version), job)
        self.bytes_down -= wire_format.size(Schema.of(payload))  # it was counted when it was sent first
        self._answer([Send(job, payload, wire_format.size(self.server.expects(job)))])

    def _next_time(self) -> float | None:
        first = next(iter(self._deadlines.values()), None)  # one timeout for all: the oldest job is due first
        times = [t for t in (self.server.next_timer, first, self.gate.next_release) if t is not None]
        return min(times, default=None)

    def _take_in(self) -> bool:
        """Handle all visible replies in the order the grid gives them (the virtual one: of their jobs); True if there
        were none. A grid may hand them out one by one, so that one is judged while the next is still computed."""
        quiet = True
        for reply in self.grid.pull_messages(self._pending.keys()):
            quiet = False
            if self.server.over:
                break
            job_id = self._pending.pop(reply.metadata.reply_to_message_id, None)
            if job_id is None:
                continue
            self._deadlines.pop(job_id, None)
            job = self.server.inflight.get(job_id)
            if job is None:  # it timed out before; the answer is late for everything
                self.server.counts["answered after timeout"] += not reply.has_error()
                continue
            self._judge(job, reply)
        return quiet

    def _judge(self, job: Job, reply: Message) -> None:
        server, now = self.server, self.clock.now()
        if reply.has_error():
            # a SuperLink forgets a message at the moment of the deadline here: which of the two is seen first is chance
            late = self.timeout is not None and now >= job.sent + self.timeout and reply.error.code in GONE
            reason = "timeout" if late else _reason(reply)
            self.tell.failed(job.id, reason, now)
            self.after_error(job.client, reason)
            if REFUSED.match(reply.error.reason or "") is not None:  # it would refuse the next job as well
                self.refused[job.client] = reason
                self.tell.left(job.client, now)
            return
        try:
            answer = records.read_answer(reply.content)
            self.bytes_up += len(answer.payload)
            expects = server.expects(job)
            verdict = self.gate.check(
                answer, job.client, server.inflight, expects, server.roster, server.undecided, server.rank_of(job)
            )
        except MalformedUpdate as error:
            verdict = Rejected(error.code, error.detail)
        if isinstance(verdict, Rejected):
            self.tell.reject(job, verdict.code, verdict.detail, now)
            if self.gate.record_violation(job.client, verdict.code, now):
                self.tell.left(job.client, now)
        else:
            self.tell.arrived(verdict, now)

    def _expire(self, now: float) -> bool:
        """Fail jobs past the timeout; True if there were none."""
        late = list(itertools.takewhile(lambda job: self._deadlines[job] <= now + 1e-9, self._deadlines))
        for job_id in late:
            del self._deadlines[job_id]
            if job_id in self.server.inflight and not self.server.over:
                self.tell.failed(job_id, "timeout", now)
        return not late

    def _release(self, now: float) -> bool:
        """Let back in whose suspension is over, if it is there; True if nobody's was."""
        free = self.gate.release(now)
        for client in free:
            if self.present(client):
                self.tell.joined(client, now)
        return not free

    def _answer(self, sends: list[Send]) -> None:
        if not sends:
            return
        made: list[tuple[Job, Message]] = []
        messages = self._messages(sends, made)
        # Flower's own grids go through what they push twice.
        accepted = set(self.grid.push_messages(list(messages) if self.seal else messages))
        for job, message in made:
            if message.metadata.message_id in accepted:
                self._pending[message.metadata.message_id] = job.id
                if self.timeout is not None:
                    self._deadlines[job.id] = job.sent + self.timeout
            else:
                self.tell.failed(job.id, "refused by the grid", self.clock.now())

    def _messages(self, sends: list[Send], made: list[tuple[Job, Message]]) -> Iterator[Message]:
        """A message for each send, made when the grid asks for it: work on the first begins before the last exists."""
        alike: dict[Place, Packed] = {}
        for send in sends:
            _, payload_record, sha256 = self._pack(send.payload, alike)
            content = records.request(
                send.job,
                payload_record,
                bytes_up=send.bytes_up,
                batch=self.server.method.work.batch,
                sha256=sha256,
                world=self.world,
                run=self.run_id,
                order=self.order,
            )
            self.bytes_down += len(payload_record["tree"].data)
            node = self.nodes(send.job.client)
            ttl = self.timeout if self.timeout is not None else TTL
            message = Message(content, node, send.job.task, ttl=ttl, group_id=str(send.job.version))
            made.append((send.job, message))
            yield message

    def _pack(self, payload: Tree, alike: dict[Place, Packed]) -> Packed:
        """A payload as one record. The same tree object, sent to many, is encoded once, and so are trees of one instant
        whose leaves are the same parts of the same tensors (`alike` keeps them, so no place is used twice)."""
        if self._packed[0] is not payload:
            place = _place(payload)
            if place not in alike:
                data = wire_format.encode(payload)
                alike[place] = payload, records.payload_record(data), wire_format.digest(data) if self.seal else ""
            self._packed = (payload, *alike[place][1:])
        return self._packed


def _place(payload: Tree) -> Place:
    """Where a tree's numbers lie, and how: equal only for equal trees while both exist."""
    return tuple((n, x.data_ptr(), x.dtype, tuple(x.shape), x.stride()) for n, x in payload.items())


def _reason(reply: Message) -> str:
    """Why a job failed, from an error reply: a short cause for the client's own errors, Flower's code for the rest."""
    error = reply.error
    text = (error.reason or "").strip().splitlines()
    if text and (refusal := REFUSED.match(text[0])) is not None:
        return refusal[1][:600]
    detail = text[0][:200] if text else ""
    if error.code == ErrorCode.NODE_UNAVAILABLE:
        return detail if detail in ("dropout", "offline", "memory") else "node unavailable"
    if error.code in GONE:
        return f"no reply: {detail}"
    if error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION:
        return f"client error: {detail}"
    if error.code == ErrorCode.CLIENT_APP_CRASHED:
        return f"client crashed: {detail}"
    return f"flower error {error.code}: {detail}"
