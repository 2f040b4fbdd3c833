"""FedCompass: the number of local steps of each client is chosen so that clients of unequal speed return in groups.

Every client that answers gets the number of steps with which it returns together with a group (`groups`). A group is
combined when all its members have answered, or at its deadline T_max = t + lambda * q * s. Later answers are part of
the next combination, whichever group it is of. Updates are not renormalised over a group: use the mean over the
population, with alpha as the server's learning rate.

Li et al., "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices using a Computing Power
Aware Scheduler", arXiv:2309.14675. Beyond the paper: `join_slack`, the initial group, a bound on task time, a timeout
for members that do not answer, and that a client's second late answer in a row triggers a combination of the late ones.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from fedhet.protocols import View
from fedhet.types import (
    Aggregate,
    Arrived,
    Assign,
    ClientId,
    Command,
    Ending,
    Event,
    Failed,
    Job,
    JobId,
    Joined,
    Left,
    Note,
    Started,
    Wake,
    Woke,
)
from strategies.schedules.groups import Group, Groups, whole_steps
from strategies.schedules.waiting import SLACK, AbstractPerClient, at_least, positive

FASTEST = 1e-9
"""Lower bound of a client's seconds per step."""


@dataclass
class FedCompass(AbstractPerClient):
    """FedCompass: groups of clients that are expected to answer at the same time.

    q_min, q_max: least and most steps of a task. q_init: steps of each client's first task; None: q_min.
    latency_factor: lambda >= 1; a group's deadline is this factor times its expected time.
    join_slack: a client that joins a group may get up to floor(join_slack * q_max) steps; 1 is strict.
    initial_mode: "individual" combines each client's first answer alone; "group" combines all first answers together,
        so that clients of equal speed train in exact synchronous rounds from the start.
    beta: weight of the newest observation in a client's seconds per step, in (0, 1].
    max_task_seconds: upper bound of a task's expected time, even if fewer than q_min steps fit; None: no bound.
    patience: a member that does not answer is given up after this factor times its time limit.
    flush: combine the buffered updates when the run ends. pause_seconds: least time from the dispatch of a failed task
        to its replacement.

    Raises ValueError for values out of range.
    """

    q_min: int = 20
    q_max: int = 100
    q_init: int | None = None
    latency_factor: float = 1.2
    join_slack: float = 1.2
    initial_mode: str = "individual"
    beta: float = 0.9
    max_task_seconds: float | None = None
    patience: float = 3.0
    flush: bool = False
    pause_seconds: float = 1.0

    groups: Groups = field(init=False)
    late: dict[ClientId, JobId] = field(init=False, default_factory=dict)
    """Answers after their group's deadline: part of the next combination."""
    gone: set[ClientId] = field(init=False, default_factory=set)
    alarms: list[tuple[float, int]] = field(init=False, default_factory=list)
    """A heap of (second, group): when a group reaches its deadline, or its silent members are given up."""

    def __post_init__(self) -> None:
        at_least("q_min", self.q_min, 1)
        at_least("q_init", self.q_init, 1)
        for name in ("latency_factor", "join_slack", "patience"):
            at_least(name, getattr(self, name), 1.0)
        positive("pause_seconds", self.pause_seconds)
        if self.max_task_seconds is not None:
            positive("max_task_seconds", self.max_task_seconds)
        if self.q_max < self.q_min:
            raise ValueError(f"q_max={self.q_max} is below q_min={self.q_min}; raise q_max or lower q_min")
        if not 0.0 < self.beta <= 1.0:
            raise ValueError(f"beta={self.beta} is not in (0, 1]; 1 trusts the newest observation alone")
        if self.initial_mode not in ("individual", "group"):
            raise ValueError(f"initial_mode={self.initial_mode!r} is unknown; use 'individual' or 'group'")
        self.groups = Groups(self.q_max)

    def react(self, event: Event, view: View) -> Iterator[Command]:
        match event:
            case Started():
                yield from self._start(view)
            case Arrived(job, seconds):
                yield from self._arrived(job, seconds, view)
            case Failed(job):
                yield from self._stop_waiting(job.client, view)
                yield from self._assign_when_idle(job.client, job.sent + self.pause_seconds, view)
            case Joined(client):
                self.gone.discard(client)
                if self.groups.of(client) is None:
                    yield from self._assign_when_idle(client, view.now, view)
            case Left(client):
                self.gone.add(client)
                self.waiting.pop(client, None)
                yield from self._stop_waiting(client, view)
            case Woke(at):
                yield from self._woke(max(at, view.now), view)
            case Ending() if self.flush:
                back = tuple(job for group in self.groups.all.values() for job in group.arrived.values())
                if jobs := self._take_late() + back:
                    yield Aggregate(jobs)

    def _start(self, view: View) -> Iterator[Command]:
        clients = self._start_all(view)
        if self.initial_mode == "group" and clients:
            group = self.groups.new()
            for client in clients:
                self.groups.enter(client, group)
            if self.max_task_seconds is not None:
                group.latest = view.now + self.max_task_seconds
                group.patience = view.now + self.patience * self.max_task_seconds
                yield from self._set_group_timer(group.latest, group)
        for client in clients:
            yield from self._assign_first(client)
        yield from self._schedule_wake(view)

    def _arrived(self, job: Job, seconds: float, view: View) -> Iterator[Command]:
        client, first = job.client, job.client not in self.groups.speeds
        self._observe(client, seconds / max(1, job.budget.steps))
        group = self.groups.of(client)
        if group is not None and group.open and (group.latest is None or view.now <= group.latest + SLACK):
            self.groups.arrive(client, job.id, group)
            if not group.waiting:
                yield from self._combine(group, view)
            return  # it gets its next task together with its group
        if group is not None:
            self.groups.quit(client, group)
        if group is None and first:
            yield Aggregate((job.id,))
        elif client in self.late:  # no combination took its last one: late answers must not accumulate
            yield Aggregate((*self._take_late(), job.id))
        else:
            self.late[client] = job.id
        yield from self._assign_when_idle(client, view.now, view)

    def _stop_waiting(self, client: ClientId, view: View) -> Iterator[Command]:
        """Remove a client that will not answer in time from the members its group waits for."""
        group = self.groups.of(client)
        if group is None or client not in group.waiting:
            return
        self.groups.quit(client, group)
        if group.open and not group.waiting:
            yield from self._combine(group, view)

    def _woke(self, now: float, view: View) -> Iterator[Command]:
        while self.alarms and self.alarms[0][0] <= now + SLACK:
            group = self.groups.all.get(heapq.heappop(self.alarms)[1])
            if group is None:
                continue
            if group.open and group.latest is not None and group.latest <= now + SLACK:
                yield from self._combine(group, view)
            elif not group.open and group.patience is not None and group.patience <= now + SLACK:
                yield Note("gave up", {"group": group.id, "clients": len(group.waiting)})
                for client in sorted(group.waiting):
                    self.groups.quit(client, group)
        for client in self._take_ready(view):
            yield from self._assign_task(client, view)
        yield from self._schedule_wake(view)

    def _combine(self, group: Group, view: View) -> Iterator[Command]:
        """Close a group, combine its answers with the late ones, and give its members new tasks, fastest first."""
        jobs = tuple(group.arrived.values())
        self.groups.close(group)
        clients = self.groups.dismiss(group)
        if group.waiting and group.patience is not None:
            yield from self._set_group_timer(group.patience, group)
        if jobs:
            yield Aggregate(self._take_late() + jobs)
        for client in clients:
            yield from self._assign_when_idle(client, view.now, view)

    def _assign_when_idle(self, client: ClientId, at: float, view: View) -> Iterator[Command]:
        """Assign a client its next task: now if it is idle and `at` is past, else as soon as both hold."""
        if client in self.gone:
            return
        if self._ready_or_wait(client, at, view):
            yield from self._assign_task(client, view)
        else:
            yield from self._schedule_wake_for(client, view)

    def _assign_task(self, client: ClientId, view: View) -> Iterator[Command]:
        """Assign the next task: a first one, or one that ends when a group is due."""
        s, now = self.groups.speeds.get(client), view.now
        if s is None:
            yield from self._assign_first(client)
            return
        place = self.groups.join(s, now, *self._bounds(math.floor(self.join_slack * self.q_max + SLACK), s))
        how = "founded" if place is None else "joined"
        if place is None:
            place = self.groups.found(s, now, *self._bounds(self.q_max, s), self.latency_factor)
            assert place[1].latest is not None
            yield from self._set_group_timer(place[1].latest, place[1])
        steps, group = place
        self.groups.enter(client, group)
        group.patience = max(group.patience or 0.0, now + self.patience * self.latency_factor * steps * s)
        assert group.due is not None
        note: dict[str, float | str] = {"group": group.id, "client": client, "steps": steps, "due": group.due}
        if group.latest is not None:
            note["latest"] = group.latest
        yield Note("group", note | {"how": how, "step_seconds": s})
        yield Assign(client, steps)

    def _assign_first(self, client: ClientId) -> Iterator[Command]:
        """Assign a first task, which measures the client's speed."""
        steps = self.q_min if self.q_init is None else self.q_init
        yield Note("first task", {"client": client, "steps": steps})
        yield Assign(client, steps)

    def _observe(self, client: ClientId, seconds_per_step: float) -> None:
        new = max(seconds_per_step, FASTEST)
        old = self.groups.speeds.get(client, new)
        self.groups.speeds[client] = new if old == new else (1.0 - self.beta) * old + self.beta * new

    def _bounds(self, most: int, s: float) -> tuple[int, int]:
        """Least and most steps for a client; the bound on task time has priority over both."""
        if self.max_task_seconds is None:
            return self.q_min, most
        cap = max(1, whole_steps(self.max_task_seconds, s))
        return min(self.q_min, cap), min(most, cap)

    def _take_late(self) -> tuple[JobId, ...]:
        jobs = tuple(self.late.values())
        self.late.clear()
        return jobs

    def _set_group_timer(self, at: float, group: Group) -> Iterator[Command]:
        heapq.heappush(self.alarms, (at, group.id))
        yield Wake(at)
