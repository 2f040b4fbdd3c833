"""The server: a state machine without I/O. Events come in, the schedule answers with commands, jobs to send come out.

Rules for maintainers of `server`, `commands`, `combination` and `server_state`, which are one state machine:
1. Everything that happens to a federation happens here. No clock, thread, socket or Flower object is used.
2. The caller passes the time; plug-ins never see it run backward.
3. A command is executed before the schedule generates the next one. Only `Assign` is deferred to the end of the instant
   (`settle`), so that all clients that are assigned at one time start from one model.
4. Plug-ins see this object as a read-only `View`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from fedhet.engine.background_tasks import AsksServerTasks, ServerTask
from fedhet.engine.commands import CommandExecutor, Send
from fedhet.engine.server_state import ClientHistory
from fedhet.engine.stopping import NEUTRAL_CODES
from fedhet.types import KEPT_RANK, Arrived, ClientId, Failed, Job, JobId, Joined, Left, Started, Update, Woke

__all__ = ["SAME_INSTANT_SECONDS", "Send", "Server"]

CLIENT_FAULTS = ("client error", "client crashed")
"""Prefixes of failure reasons that the client itself causes: the same job would fail again."""

SAME_INSTANT_SECONDS = 1e-9
"""Times closer than a nanosecond are the same instant."""


@dataclass
class Server(CommandExecutor):
    """One federation. Construct, `start`, then pass events and `settle` after each instant until `over` is not empty;
    it then is the reason why the run ended."""

    @property
    def next_timer(self) -> float | None:
        """The second at which `wake` is due, if any."""
        times = [self.timers[0] if self.timers else None, self.server_tasks.next_due]
        return min((at for at in times if at is not None), default=None)

    def start(self) -> None:
        """Start the run."""
        if self.limits.seconds is not None:
            heapq.heappush(self.timers, self.limits.seconds)
        self._emit("started", clients=self.taking_part, method=self.method.name)
        self._react(Started())

    def arrived(self, update: Update, now: float) -> None:
        """Take an update that passed the gate."""
        self._advance(now)
        self._hold(update.job.version)  # before the job in flight releases its base
        earlier = update.job.id in self.sent_earlier
        job = self._land(update.job.id)
        seconds = self.now - job.sent
        seen = self.seen.setdefault(job.client, ClientHistory())
        seen.finished += 1
        seen.faults = 0
        seen.seconds_per_step = seconds / max(1, job.budget.steps)
        seen.rank = int(update.metrics.get(KEPT_RANK, seen.rank))
        if not earlier:
            self.held[job.client] = job.version
        self.counts["arrived"] += 1
        self.consecutive_failures = 0
        self._emit(
            "arrived", job=job.id, client=job.client, version=job.version, seconds=seconds,
            weight=update.weight, metrics=dict(update.metrics),
        )  # fmt: skip
        if not self._start_server_task(update, seconds):
            self._buffer(update, seconds)

    def failed(self, job_id: JobId, reason: str, now: float) -> None:
        """A job will give no update. The part of `reason` after a colon is detail and is not counted separately."""
        self._advance(now)
        job = self._land(job_id)
        self.held.pop(job.client, None)  # it is unknown whether the client received the model
        self.seen.setdefault(job.client, ClientHistory()).failed += 1
        self.counts["failed: " + reason.partition(":")[0]] += 1
        self._emit("failed", job=job.id, client=job.client, reason=reason)
        self._check_failure_streak(job.client, reason, own=reason.startswith(CLIENT_FAULTS))
        self._react(Failed(job, reason))

    def reject(self, job: Job, code: str, detail: str, now: float) -> None:
        """The gate rejected an answer; for the schedule the job failed."""
        self._advance(now)
        self._land(job.id)
        self.held.pop(job.client, None)
        self.seen.setdefault(job.client, ClientHistory()).failed += 1
        self.counts[f"rejected: {code}"] += 1
        self._emit("rejected", client=job.client, job=job.id, code=code, detail=detail)
        self._check_failure_streak(job.client, f"rejected: {code}: {detail}", own=code not in NEUTRAL_CODES)
        self._react(Failed(job, f"rejected: {code}"))

    def joined(self, client: ClientId, now: float) -> None:
        """A client is in the roster (again) and can take jobs."""
        self._advance(now)
        self.excluded.discard(client)
        self.held.pop(client, None)  # it may run on another device now, whatever an earlier one still answers
        if client in self._busy:
            self.sent_earlier.update(job.id for job in self.inflight.values() if job.client == client)
        self._emit("joined", client=client)
        self._react(Joined(client))

    def left(self, client: ClientId, now: float) -> None:
        """A client gets no more jobs; its job in flight still fails or arrives."""
        self._advance(now)
        self.excluded.add(client)
        if client in self._assigned:
            del self._assigned[client]
            self._busy.discard(client)
        self._emit("left", client=client)
        self._react(Left(client))

    def expel(self, client: ClientId, reason: str, now: float) -> None:
        """Remove a client from the run, and its updates that are not combined yet.

        If a schedule names such an update later, it is left out of that command.
        """
        self._advance(now)
        for number in [n for n, task in self.server_tasks.open.items() if task.update.job.client == client]:
            self._release(self.server_tasks.drop(number).update.job.version)
            self.counts[f"dropped: {reason}"] += 1
            self._emit("dropped", jobs=[number], reason=reason)
        undecided = [job for job in self.buffer.values() if job.client == client]
        if undecided:
            jobs = tuple(job.id for job in undecided)
            self._drop(jobs, reason)
            self.revoked_jobs.update(set(jobs) - set(self.carried))  # no schedule names a carried update again
        self.left(client, now)
        for job in [job for job in self.inflight.values() if job.client == client]:
            self.failed(job.id, reason, now)

    def wake(self, now: float) -> None:
        """Process all server tasks and timers that are due, one by one."""
        self._advance(now)
        while not self.over and (task := self.server_tasks.due(self.now + SAME_INSTANT_SECONDS)) is not None:
            transform = dict(self.method.transforms)[task.transform]
            memory = self.memories.setdefault(task.transform, {})
            assert isinstance(transform, AsksServerTasks)
            transform.complete(task.update, self.server_tasks.executor.result(task), memory)
            self._buffer(task.update, task.seconds)
        while self.timers and self.timers[0] <= self.now + SAME_INSTANT_SECONDS and not self.over:
            at = heapq.heappop(self.timers)
            if self.limits.seconds is not None and at >= self.limits.seconds:
                self.closing = f"{self.limits.seconds:g} seconds"
                self._finish()
            else:
                self._react(Woke(at))

    def stop(self, reason: str, now: float) -> None:
        """End the run now, after the schedule has flushed its buffer; `reason` is stored in the result."""
        self._advance(now)
        self.closing = self.closing or reason
        self._finish()

    def settle(self, now: float) -> list[Send]:
        """The end of an instant: make jobs of the assignments, in ascending order of clients."""
        self._advance(now)
        if self.over:
            return []
        sends = [self._dispatch(self._assigned[client]) for client in sorted(self._assigned)]
        self._assigned.clear()
        return sends

    def _buffer(self, update: Update, seconds: float) -> None:
        """Make an update available for combination."""
        job = update.job
        self.buffer[job.id], self.updates[job.id] = job, self.aggregator.arrived(update)
        self._react(Arrived(job, seconds))

    def _start_server_task(self, update: Update, seconds: float) -> bool:
        """Whether a transform starts a server task for an update. Only the outermost transform with an `arrive` of its
        own is asked, since it sees the update as it arrived."""
        if self.closing or not self._asking:
            return False
        ((name, transform),) = self._asking
        asked = transform.prepare(update, self, self.memories.setdefault(name, {}))
        if asked is None:
            return False
        task, cost = asked
        self.server_tasks.take(ServerTask(update, name, task, self.now + cost, seconds))
        self._emit("prepared", job=update.job.id, client=update.job.client, until=self.now + cost)
        return True
