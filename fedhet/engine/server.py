"""The server: a state machine without I/O. Events come in, the schedule answers with commands, sends come out.

Rules for maintainers of this file:
1. Everything that happens to a federation happens here; its state is in `fedhet.engine.server_state`. Nothing here
knows a clock, a
   thread, a socket or Flower.
2. The time is what the caller says it is; it never runs backward in what plug-ins see.
3. A command is carried out before the schedule is asked for the next one. Only `Assign` waits: for the end of the
   instant (`settle`), so that everybody who is answered at one time starts from one model.
4. Plug-ins see this object as a read-only `View`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedhet.engine.aggregator import Demanding
from fedhet.engine.background_tasks import AsksServerTasks, ServerTask
from fedhet.engine.server_state import AbstractServerState, Seen
from fedhet.engine.stopping import BLAMELESS, PATIENCE, Diverged, ScheduleError, TooManyFailures
from fedhet.numerics import tree, wire_format
from fedhet.numerics.tree import Schema
from fedhet.types import (
    KEPT_RANK,
    Aggregate,
    Arrived,
    Assign,
    ClientId,
    Command,
    Drop,
    Ending,
    Event,
    Failed,
    Job,
    JobId,
    Joined,
    Left,
    Note,
    Started,
    Stop,
    Tree,
    Update,
    Wake,
    Woke,
)

OWN = ("client error", "client crashed")
"""How reasons begin that are a client's own doing: the same job would fail again."""

SLACK = 1e-9
"""Seconds: times closer than a nanosecond are the same instant."""


@dataclass(frozen=True, slots=True)
class Send:
    """A job on its way: the payload to pack and the bytes its answer will have."""

    job: Job
    payload: Tree
    bytes_up: int


@dataclass
class Server(AbstractServerState):
    """One federation. Construct, `start`, then feed events and `settle` after each instant until `over` says why."""

    # What the host calls

    @property
    def next_timer(self) -> float | None:
        """The second at which `wake` is due, if any."""
        times = [self.timers[0] if self.timers else None, self.server_tasks.next_due]
        return min((at for at in times if at is not None), default=None)

    def start(self) -> None:
        """The run begins."""
        if self.limits.seconds is not None:
            heapq.heappush(self.timers, self.limits.seconds)
        self._emit("started", clients=self.taking_part, method=self.method.name)
        self._react(Started())

    def arrived(self, update: Update, now: float) -> None:
        """An answer that passed the gate."""
        self._advance(now)
        self._hold(update.job.version)  # before the job in flight lets go of its base
        earlier = update.job.id in self.sent_earlier
        job = self._land(update.job.id)
        seconds = self.now - job.sent
        seen = self.seen.setdefault(job.client, Seen())
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
        if not self._ponder(update, seconds):
            self._buffer(update, seconds)

    def failed(self, job_id: JobId, reason: str, now: float) -> None:
        """A job that will bring nothing; what follows a colon in `reason` is for people and is not counted apart."""
        self._advance(now)
        job = self._land(job_id)
        self.held.pop(job.client, None)  # it may have got the model or not
        self.seen.setdefault(job.client, Seen()).failed += 1
        self.counts["failed: " + reason.partition(":")[0]] += 1
        self._emit("failed", job=job.id, client=job.client, reason=reason)
        self._check_failure_streak(job.client, reason, own=reason.startswith(OWN))
        self._react(Failed(job, reason))

    def reject(self, job: Job, code: str, detail: str, now: float) -> None:
        """An answer the gate did not let in; for the schedule the job failed."""
        self._advance(now)
        self._land(job.id)
        self.held.pop(job.client, None)
        self.seen.setdefault(job.client, Seen()).failed += 1
        self.counts[f"rejected: {code}"] += 1
        self._emit("rejected", client=job.client, job=job.id, code=code, detail=detail)
        self._check_failure_streak(job.client, f"rejected: {code}: {detail}", own=code not in BLAMELESS)
        self._react(Failed(job, f"rejected: {code}"))

    def joined(self, client: ClientId, now: float) -> None:
        """A client that is in the roster (again) and may be given work."""
        self._advance(now)
        self.excluded.discard(client)
        self.held.pop(client, None)  # it may come back on another device, whatever an earlier one still answers
        if client in self._busy:
            self.sent_earlier.update(job.id for job in self.inflight.values() if job.client == client)
        self._emit("joined", client=client)
        self._react(Joined(client))

    def left(self, client: ClientId, now: float) -> None:
        """A client that may not be given work any more; its job in flight fails or arrives by itself."""
        self._advance(now)
        self.excluded.add(client)
        if client in self._assigned:
            del self._assigned[client]
            self._busy.discard(client)
        self._emit("left", client=client)
        self._react(Left(client))

    def expel(self, client: ClientId, reason: str, now: float) -> None:
        """A client that may take no part any more: what it sent and nobody decided on yet does not count either.

        A schedule that names such an update later has it left out of what it asked for.
        """
        self._advance(now)
        for number in [n for n, chore in self.server_tasks.open.items() if chore.update.job.client == client]:
            self._release(self.server_tasks.drop(number).update.job.version)
            self.counts[f"dropped: {reason}"] += 1
            self._emit("dropped", jobs=[number], reason=reason)
        undecided = [job for job in self.buffer.values() if job.client == client]
        if undecided:
            jobs = tuple(job.id for job in undecided)
            self._carry_out(Drop(jobs, reason))
            self.revoked_jobs.update(set(jobs) - set(self.carried))  # what is carried no schedule names again
        self.left(client, now)
        for job in [job for job in self.inflight.values() if job.client == client]:
            self.failed(job.id, reason, now)

    def wake(self, now: float) -> None:
        """All server_tasks and timers that are due, one by one."""
        self._advance(now)
        while not self.over and (chore := self.server_tasks.due(self.now + SLACK)) is not None:
            layer, memory = dict(self.method.transforms)[chore.layer], self.memories.setdefault(chore.layer, {})
            assert isinstance(layer, AsksServerTasks)
            layer.complete(chore.update, self.server_tasks.hands.result(chore), memory)
            self._buffer(chore.update, chore.seconds)
        while self.timers and self.timers[0] <= self.now + SLACK and not self.over:
            at = heapq.heappop(self.timers)
            if self.limits.seconds is not None and at >= self.limits.seconds:
                self.closing = f"{self.limits.seconds:g} seconds"
                self._finish()
            else:
                self._react(Woke(at))

    def stop(self, reason: str, now: float) -> None:
        """End the run now, after the schedule has combined what it will; `reason` is what the result says."""
        self._advance(now)
        self.closing = self.closing or reason
        self._finish()

    def settle(self, now: float) -> list[Send]:
        """The end of an instant: turn assignments into jobs, or end the run if a limit is reached."""
        self._advance(now)
        if self.over:
            return []
        sends = [self._dispatch(self._assigned[client]) for client in sorted(self._assigned)]
        self._assigned.clear()
        return sends

    def expects(self, job: Job) -> Schema:
        """What the answer to a job must look like on the wire."""
        schema = self.space.expects(self.bases[job.version], job)
        for _, layer in self.method.transforms:
            schema = layer.wire(schema)
        return schema

    def step_of(self, updates: Sequence[Update]) -> Tree:
        """The step that these updates would make of the model, without making it; memories of layers may change."""
        self.cohort = [update.job for update in updates]
        return self._step(list(updates))[1]

    # Inside

    def _buffer(self, update: Update, seconds: float) -> None:
        """An update can be combined from now on."""
        job = update.job
        self.buffer[job.id], self.updates[job.id] = job, self.aggregator.arrived(update)
        self._react(Arrived(job, seconds))

    def _ponder(self, update: Update, seconds: float) -> bool:
        """Whether a layer has a chore with an update first: the outermost that does anything to what comes in, which
        sees it as it came."""
        if self.closing or not self._pondering:
            return False
        ((name, layer),) = self._pondering
        asked = layer.prepare(update, self, self.memories.setdefault(name, {}))
        if asked is None:
            return False
        task, cost = asked
        self.server_tasks.take(ServerTask(update, name, task, self.now + cost, seconds))
        self._emit("prepared", job=update.job.id, client=update.job.client, until=self.now + cost)
        return True

    def _react(self, event: Event) -> None:
        if self.over:  # one who is shut out can lose several jobs, and the first of them may have been the run's last
            return
        for command in self.method.schedule.react(event, self):
            self._carry_out(command)
        if self.limits.tasks is not None and self.landed >= self.limits.tasks and not self.closing:
            self.closing = f"{self.limits.tasks} client tasks"
        self._finish()

    def _finish(self) -> None:
        """If the run is closing: let the schedule flush, then stop for good."""
        if not self.closing or self.over:
            return
        self._busy.difference_update(self._assigned)
        self._assigned.clear()
        for command in self.method.schedule.react(Ending(), self):
            self._carry_out(command)
        self.over = self.closing
        self._emit("stopped", reason=self.over, unfinished=len(self.inflight), buffered=len(self.buffer))

    def _carry_out(self, command: Command) -> None:
        match command:
            case Aggregate(jobs):
                standing = self._standing(jobs)
                if standing or not jobs:
                    self._combine(standing)
                if self.limits.versions is not None and self.version >= self.limits.versions and not self.closing:
                    self.closing = f"{self.limits.versions} versions"
            case Drop(jobs, reason):
                jobs = self._standing(jobs)
                for job in [self._unbuffer(j) for j in jobs]:
                    self._release(job.version)
                self.aggregator.dropped(jobs)
                self.counts[f"dropped: {reason}"] += len(jobs)
                self._emit("dropped", jobs=list(jobs), reason=reason)
            case Note(kind, data):
                self._emit("note", kind=kind, **data)
            case Stop(reason):
                self.closing = self.closing or reason or "the schedule stopped"
            case Assign() if not self.closing:
                self._assign(command)
            case Wake(at) if not self.closing and math.isfinite(at):
                heapq.heappush(self.timers, max(at, self.now))
                self._emit("wake", at=at)

    def _assign(self, command: Assign) -> None:
        """A client that is offline may be assigned: the job waits for it, as a message does on a real server."""
        client, who = command.client, type(self.method.schedule).__name__
        if client in self._busy:
            raise ScheduleError(f"{who} assigned client {client}, which has a job already")
        if client not in self.roster:
            raise ScheduleError(f"{who} assigned client {client}, which is not in the roster")
        if client in self.excluded:
            self._emit("skipped", client=client, reason="suspended or gone")
            return
        self._assigned[command.client] = command
        self._busy.add(command.client)

    def _dispatch(self, assign: Assign) -> Send:
        client = assign.client
        budget = self.method.budget(client, self)
        if assign.steps is not None:
            budget = replace(budget, steps=assign.steps)
        own = self.observed(client).rank
        if own:
            budget = replace(budget, rank=min(own, budget.rank or own))
        if not self.jobs:
            self.opened = self.now
        turn = self.turns.get(client, 0)
        self.turns[client] = turn + 1
        job = Job(self.jobs, client, self.version, turn, budget, self.now, assign.task, self.held.get(client, -1))
        self.jobs += 1
        self.inflight[job.id] = job
        self._hold(job.version)
        self.counts["dispatched"] += 1
        self._emit(
            "assign", job=job.id, client=client, version=job.version, turn=turn,
            steps=budget.steps, rank=budget.rank, width=budget.width,
        )  # fmt: skip
        payload = self.space.offer(self.state, job)
        return Send(job, payload, wire_format.size(self.expects(job)))

    def _step(self, updates: list[Update]) -> tuple[list[Update], Tree]:
        """What comes of the cohort's updates: as they count, and the step that is added to the model."""
        inward = self.method.transforms[::-1]
        for name, layer in inward:
            memory = self.memories.setdefault(name, {})
            updates = [layer.arrive(u, self, memory) for u in updates]
        updates = [
            replace(u, delta=self.space.decode_delta(self.bases[u.job.version], u.job, u.delta)) for u in updates
        ]
        delta = self.aggregator.combine(self.method.rule, updates, self.space, self)
        for name, layer in inward:
            step, beside = self.space.split_optimized(delta) if name.startswith("optimizer") else (delta, {})
            delta = tree.join(layer.finish(step, self, self.memories.setdefault(name, {})), beside)
        if not math.isfinite(tree.squared_norm(delta)):
            raise Diverged(
                f"version {self.version + 1}, combined from clients {[j.client for j in self.cohort]}, is not finite"
            )
        return updates, delta

    def _combine(self, ids: Sequence[JobId]) -> None:
        """Combine these and what was carried over; or carry all of it to the next combination, if the rule says that
        it is too few. Of a client that has a newer update the carried one is dropped: nobody counts twice by waiting.

        Raises TooManyFailures if that happens again and again and what is carried grows no more.
        """
        if not ids:
            raise ScheduleError(f"{type(self.method.schedule).__name__} combined nothing")
        if not isinstance(self.method.rule, Demanding):
            return self._aggregate(ids)
        newer = {self.buffer[i].client for i in ids}
        carried = [i for i in self.carried if i in self.buffer]
        if older := tuple(i for i in carried if self.buffer[i].client in newer):
            self._carry_out(Drop(older, "superseded"))
        together = (*(i for i in carried if i not in older), *ids)
        lack = self.method.rule.lacks([self.buffer[i].client for i in together])
        if lack is None:
            self.carried, self.stuck = [], 0
            return self._aggregate(together)
        self.note("carried", {"jobs": len(together), "why": lack.why})
        if getattr(self.method.schedule, "apart", False):
            self.stuck += 1
            self._carry_out(Drop(together, "too few"))
        else:
            self.stuck = 0 if len(together) > len(carried) else self.stuck + 1
            self.carried = list(together)
        if self.stuck >= max(PATIENCE, 3 * len(self.roster)):
            raise TooManyFailures(f"nothing could be combined the last {self.stuck} times: rule.{lack.key}: {lack.why}")

    def _aggregate(self, ids: Sequence[JobId]) -> None:
        """One combination: arrive, rule, finish, merge. The page to show anyone who asks what federated learning is."""
        updates = sorted((self.updates[i] for i in ids if i in self.updates), key=lambda u: (u.job.client, u.job.id))
        jobs = [self._unbuffer(i) for i in ids]
        self.cohort = [u.job for u in updates]
        updates, delta = self._step(updates)
        old = self.version
        self.state = self.space.merge(self.state, delta)
        self.version += 1
        self.bases[self.version] = self.state
        self.counts["combined"] += len(jobs)
        self._emit(
            "combined", version=self.version, jobs=[u.job.id for u in updates], clients=[u.job.client for u in updates],
            staleness=[old - u.job.version for u in updates], scales=[u.scale for u in updates],
        )  # fmt: skip
        self.cohort = ()
        for job in jobs:
            self._release(job.version)
        if not self._holders[old]:
            self._holders.pop(old, None)
            self.bases.pop(old, None)
