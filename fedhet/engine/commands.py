"""The server's second layer: it passes events to the schedule, executes its commands and makes jobs."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

from fedhet.engine.combination import CombiningServer
from fedhet.engine.stopping import ScheduleError
from fedhet.numerics import wire_format
from fedhet.numerics.tree import Schema
from fedhet.types import Aggregate, Assign, Command, Drop, Ending, Event, Job, Note, Stop, Tree, Wake


@dataclass(frozen=True, slots=True)
class Send:
    """A job to send: the payload to pack, and the size of its answer in bytes."""

    job: Job
    payload: Tree
    bytes_up: int


@dataclass
class CommandExecutor(CombiningServer):
    """A server that executes the commands of its schedule; see `fedhet.engine.server.Server` for the inputs."""

    def expects(self, job: Job) -> Schema:
        """The schema that the answer to a job must have on the wire."""
        schema = self.space.expects(self.bases[job.version], job)
        for _, transform in self.method.transforms:
            schema = transform.wire(schema)
        return schema

    def _react(self, event: Event) -> None:
        if self.over:  # an expelled client can lose several jobs, and the first of them may have ended the run
            return
        for command in self.method.schedule.react(event, self):
            self._execute(command)
        if self.limits.tasks is not None and self.landed >= self.limits.tasks and not self.closing:
            self.closing = f"{self.limits.tasks} client tasks"
        self._finish()

    def _finish(self) -> None:
        """If the run is closing: let the schedule flush its buffer, then end the run."""
        if not self.closing or self.over:
            return
        self._busy.difference_update(self._assigned)
        self._assigned.clear()
        for command in self.method.schedule.react(Ending(), self):
            self._execute(command)
        self.over = self.closing
        self._emit("stopped", reason=self.over, unfinished=len(self.inflight), buffered=len(self.buffer))

    def _execute(self, command: Command) -> None:
        match command:
            case Aggregate(jobs):
                remaining = self._not_revoked(jobs)
                if remaining or not jobs:
                    self._combine(remaining)
                if self.limits.versions is not None and self.version >= self.limits.versions and not self.closing:
                    self.closing = f"{self.limits.versions} versions"
            case Drop(jobs, reason):
                self._drop(jobs, reason)
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
        """A client that is offline may be assigned: the job waits for it, as a message does on a real server. Raises
        ScheduleError if the client is busy or not in the roster."""
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
