"""The event loop: it connects a server to any Flower Grid and any Clock.

One iteration is one instant: process every reply that is visible, wake the timers that are due, then send new jobs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedhet.engine.inputs import Inputs
from fedhet.engine.server import Send, Server
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.flower import messages as records
from fedhet.flower.error_replies import LOST_MESSAGE, failure_reason, is_refusal
from fedhet.flower.payload_packing import PackedPayload, PayloadPacker, Place
from fedhet.flower.reply_stream import allow
from fedhet.numerics import wire_format
from fedhet.numerics.tree import Schema
from fedhet.numerics.wire_format import MalformedUpdate
from fedhet.protocols import Clock
from fedhet.types import ClientId, Job, JobId

DEFAULT_TTL_SECONDS = 12 * 3600.0
"""Time to live of a message on a real grid when no job timeout is set."""


@dataclass
class EventLoop:
    """Sends a server's jobs and processes a grid's replies.

    `nodes` maps clients to node ids, `present` says whether a client is online. `world` is the configuration that
    devices need, `order` the operator's signature over it, `run_id` the name of the run where answers are signed.
    `seal` adds a SHA-256 to every payload, `timeout` is in seconds of the clock. `tell` takes the server's inputs: the
    server itself, or a `Journaled` one, which logs them first. `after_error` is called for every error reply of a
    device, after the server has processed it. `refused` maps clients that were excluded because they refuse the
    configuration to the reason they gave.
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

    def __post_init__(self) -> None:
        self.tell = self.server
        self._packer = PayloadPacker(self.seal)
        allow(self.grid, self.allowance)

    def run(self, *, start: bool = True) -> None:
        """Run until the server is over. Raises what a plug-in raises, and the clock's `Stalled`."""
        server = self.server
        if start:
            self.tell.start()
        self._send(self.tell.settle(self.clock.now()))
        while not server.over:
            self.before_instant()
            quiet = self._receive()
            now = self.clock.now()
            quiet = self._expire(now) and quiet
            quiet = self._release(now) and quiet
            if server.next_timer is not None and server.next_timer <= now + 1e-9:
                self.tell.wake(now)
                quiet = False
            self.before_sends()
            self._send(self.tell.settle(now))
            self.after_instant()
            if quiet and not server.over:
                self.clock.wait(self._next_time())

    @property
    def settled(self) -> bool:
        """Whether every message in flight belongs to a job that the server still waits for. A checkpoint in virtual
        time needs this."""
        return all(job in self.server.inflight for job in self._pending.values())

    def allowance(self, message_id: str) -> int | None:
        """The largest size in bytes of the payload of a message's reply: the expected size of the job's answer, None if
        the server no longer waits for it, 0 if the message is not a job."""
        if message_id not in self._pending:
            return 0
        job = self.server.inflight.get(self._pending[message_id])
        return None if job is None else wire_format.size(self.server.expects(job))

    def resend(self, job: Job) -> None:
        """Send an outstanding job again, with the payload it had, after a resume."""
        payload = self.server.space.offer(self.server.base(job.version), job)
        self.bytes_down -= wire_format.size(Schema.of(payload))  # counted when it was sent the first time
        self._send([Send(job, payload, wire_format.size(self.server.expects(job)))])

    def _next_time(self) -> float | None:
        first = next(iter(self._deadlines.values()), None)  # one timeout for all: the oldest job is due first
        times = [t for t in (self.server.next_timer, first, self.gate.next_release) if t is not None]
        return min(times, default=None)

    def _receive(self) -> bool:
        """Process all visible replies in the order of the grid (a virtual grid: of their jobs); True if there were
        none. A grid may yield them one by one, so one is processed while the next is still computed."""
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
            if job is None:  # it timed out before: the answer is not used
                self.server.counts["answered after timeout"] += not reply.has_error()
                continue
            self._process(job, reply)
        return quiet

    def _process(self, job: Job, reply: Message) -> None:
        server, now = self.server, self.clock.now()
        if reply.has_error():
            # a SuperLink deletes a message at the deadline that is used here too: either may be observed first
            late = self.timeout is not None and now >= job.sent + self.timeout and reply.error.code in LOST_MESSAGE
            reason = "timeout" if late else failure_reason(reply)
            self.tell.failed(job.id, reason, now)
            self.after_error(job.client, reason)
            if is_refusal(reply):  # the client would refuse the next job as well
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
        """Readmit clients whose suspension ended, if they are online; True if none ended."""
        free = self.gate.release(now)
        for client in free:
            if self.present(client):
                self.tell.joined(client, now)
        return not free

    def _send(self, sends: list[Send]) -> None:
        if not sends:
            return
        made: list[tuple[Job, Message]] = []
        messages = self._messages(sends, made)
        # Flower's own grids iterate over the messages twice.
        accepted = set(self.grid.push_messages(list(messages) if self.seal else messages))
        for job, message in made:
            if message.metadata.message_id in accepted:
                self._pending[message.metadata.message_id] = job.id
                if self.timeout is not None:
                    self._deadlines[job.id] = job.sent + self.timeout
            else:
                self.tell.failed(job.id, "refused by the grid", self.clock.now())

    def _messages(self, sends: list[Send], made: list[tuple[Job, Message]]) -> Iterator[Message]:
        """A message for each send, made when the grid asks for it: the first is computed before the last is made."""
        same_instant: dict[Place, PackedPayload] = {}
        for send in sends:
            _, payload_record, sha256 = self._packer.pack(send.payload, same_instant)
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
            ttl = self.timeout if self.timeout is not None else DEFAULT_TTL_SECONDS
            message = Message(content, node, send.job.task, ttl=ttl, group_id=str(send.job.version))
            made.append((send.job, message))
            yield message
