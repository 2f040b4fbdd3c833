"""FedCompass: numbers of steps chosen so that unequal clients return together, in groups.

Every client that comes back is given the steps with which it meets a group of others (`groups`). A group is combined
when all its members are back, or at its latest second T_max = t + lambda * q * s. Members that come after that wait for
whichever combination is next, and keep nobody waiting. Updates are not renormalised over a group: use the mean over the
population, with alpha as the server's learning rate.

Li et al., "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices using a Computing Power
Aware Scheduler", arXiv:2309.14675. Beyond the paper: `join_slack`, the initial group, a bound on task
time, giving up on silent members, and that the second late answer of one client combines the waiting ones by itself.
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
from strategies.schedules.parking import SLACK, AbstractPerClient, at_least, positive

FASTEST = 1e-9
"""Seconds per step a client is taken to need at least."""


@dataclass
class FedCompass(AbstractPerClient):
    """Groups by arrival time.

    q_min, q_max: bounds on a task's steps. q_init: steps of everybody's first task; None is q_min.
    latency_factor: lambda, how much longer than expected a group waits for its members, at least 1.
    join_slack: a joining client may be given up to floor(join_slack * q_max) steps; 1 is strict.
    initial_mode: "individual" combines each client's first return alone; "group" waits for all first returns and
        combines them together, which makes equal clients exact synchronous rounds from the start.
    beta: weight of the newest observation in a client's seconds per step, in (0, 1].
    max_task_seconds: expected length of a task at most, even if fewer than q_min steps fit; None is no bound.
    patience: silent members are given up this many times later after their dispatch than they would be late.
    flush: combine what is buffered when the run ends. pause_seconds: a failed task is replaced no sooner than this
        long after its dispatch.

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
    """Answers that came after their group, waiting for the next combination."""
    gone: set[ClientId] = field(init=False, default_factory=set)
    alarms: list[tuple[float, int]] = field(init=False, default_factory=list)
    """A heap of (second, group) at which a group is to be looked at: closed, or its silent members given up."""

    def __post_init__(self) -> None:
        at_least("q_min", self.q_min, 1)
        at_least("q_init", self.q_init, 1)
        at_least("latency_factor", self.latency_factor, 1.0)
        at_least("join_slack", self.join_slack, 1.0)
        at_least("patience", self.patience, 1.0)
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
                yield from self._lose(job.client, view)
                yield from self._employ(job.client, job.sent + self.pause_seconds, view)
            case Joined(client):
                self.gone.discard(client)
                if self.groups.of(client) is None:
                    yield from self._employ(client, view.now, view)
            case Left(client):
                self.gone.add(client)
                self.waiting.pop(client, None)
                yield from self._lose(client, view)
            case Woke(at):
                yield from self._woke(max(at, view.now), view)
            case Ending() if self.flush:
                back = tuple(job for group in self.groups.all.values() for job in group.arrived.values())
                if jobs := self._take_late() + back:
                    yield Aggregate(jobs)

    # Events

    def _start(self, view: View) -> Iterator[Command]:
        clients = self._enter(view)
        if self.initial_mode == "group" and clients:
            group = self.groups.new()
            for client in clients:
                self.groups.enter(client, group)
            if self.max_task_seconds is not None:
                group.latest = view.now + self.max_task_seconds
                group.patience = view.now + self.patience * self.max_task_seconds
                yield from self._watch(group.latest, group)
        for client in clients:
            yield from self._first(client)
        yield from self._rouse(view)

    def _arrived(self, job: Job, seconds: float, view: View) -> Iterator[Command]:
        client, first = job.client, job.client not in self.groups.speeds
        self._observe(client, seconds / max(1, job.budget.steps))
        group = self.groups.of(client)
        if group is not None and group.open and (group.latest is None or view.now <= group.latest + SLACK):
            self.groups.arrive(client, job.id, group)
            if not group.waiting:
                yield from self._combine(group, view)
            return  # it is sent on with its group
        if group is not None:
            self.groups.quit(client, group)
        if group is None and first:
            yield Aggregate((job.id,))
        elif client in self.late:  # nobody took its last one along: whoever is always late must not pile up
            yield Aggregate((*self._take_late(), job.id))
        else:
            self.late[client] = job.id
        yield from self._employ(client, view.now, view)

    def _lose(self, client: ClientId, view: View) -> Iterator[Command]:
        """A client that will not be back in time, if ever: its group waits for the others only."""
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
        for client in self._ready(view):
            yield from self._give(client, view)
        yield from self._rouse(view)

    # Moves

    def _combine(self, group: Group, view: View) -> Iterator[Command]:
        """Close a group; combine those who are back with the late answers, and send them on, fastest first."""
        jobs = tuple(group.arrived.values())
        self.groups.close(group)
        clients = self.groups.dismiss(group)
        if group.waiting and group.patience is not None:
            yield from self._watch(group.patience, group)
        if jobs:
            yield Aggregate(self._take_late() + jobs)
        for client in clients:
            yield from self._employ(client, view.now, view)

    def _employ(self, client: ClientId, at: float, view: View) -> Iterator[Command]:
        """Work for a client from second `at` on: now if it can, else when it can."""
        if client in self.gone:
            return
        if self._free(client, at, view):
            yield from self._give(client, view)
        else:
            yield from self._rouse_one(client, view)

    def _give(self, client: ClientId, view: View) -> Iterator[Command]:
        """The next task: a first one, or one that ends with a group."""
        s, now = self.groups.speeds.get(client), view.now
        if s is None:
            yield from self._first(client)
            return
        place = self.groups.join(s, now, *self._bounds(math.floor(self.join_slack * self.q_max + SLACK), s))
        how = "founded" if place is None else "joined"
        if place is None:
            place = self.groups.found(s, now, *self._bounds(self.q_max, s), self.latency_factor)
            assert place[1].latest is not None
            yield from self._watch(place[1].latest, place[1])
        steps, group = place
        self.groups.enter(client, group)
        group.patience = max(group.patience or 0.0, now + self.patience * self.latency_factor * steps * s)
        assert group.due is not None
        note: dict[str, float | str] = {"group": group.id, "client": client, "steps": steps, "due": group.due}
        if group.latest is not None:
            note["latest"] = group.latest
        yield Note("group", note | {"how": how, "step_seconds": s})
        yield Assign(client, steps)

    def _first(self, client: ClientId) -> Iterator[Command]:
        """A first task, which shows how fast the client is."""
        steps = self.q_min if self.q_init is None else self.q_init
        yield Note("first task", {"client": client, "steps": steps})
        yield Assign(client, steps)

    # Bookkeeping

    def _observe(self, client: ClientId, seconds_per_step: float) -> None:
        new = max(seconds_per_step, FASTEST)
        old = self.groups.speeds.get(client, new)
        self.groups.speeds[client] = new if old == new else (1.0 - self.beta) * old + self.beta * new

    def _bounds(self, most: int, s: float) -> tuple[int, int]:
        """Least and most steps for a client; the bound on task time comes before both."""
        if self.max_task_seconds is None:
            return self.q_min, most
        cap = max(1, whole_steps(self.max_task_seconds, s))
        return min(self.q_min, cap), min(most, cap)

    def _take_late(self) -> tuple[JobId, ...]:
        jobs = tuple(self.late.values())
        self.late.clear()
        return jobs

    def _watch(self, at: float, group: Group) -> Iterator[Command]:
        heapq.heappush(self.alarms, (at, group.id))
        yield Wake(at)
