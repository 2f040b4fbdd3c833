"""FedCompass's arrival groups: the clients expected to answer together, and the number of steps to reach a group.

A client with s seconds per step that must answer at T gets q = floor((T - now) / s) steps. It joins the open group
that gives it the most steps within bounds. If there is none, it creates a group whose time is such that the members of
another group can join it after their own combination: that group's deadline plus q_max steps of its fastest member.

Li et al., "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices using a Computing Power
Aware Scheduler", arXiv:2309.14675. Sorted lists make a decision logarithmic in the number of groups, and a heap per
group has its fastest member first.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field

from fedhet.types import ClientId, JobId
from strategies.schedules.waiting import SLACK


@dataclass
class Group:
    """Clients that are expected to answer at the same time. All times are in seconds.

    due: expected arrival T_a. latest: deadline T_max. fastest: seconds per step of its fastest member.
    patience: when members that have not answered are given up. The initial group may have no times: None.
    """

    id: int
    due: float | None = None
    latest: float | None = None
    fastest: float = math.inf
    patience: float | None = None
    open: bool = True
    waiting: set[ClientId] = field(default_factory=set)
    arrived: dict[ClientId, JobId] = field(default_factory=dict)
    pace: list[tuple[float, ClientId]] = field(default_factory=list)
    """A heap of (seconds per step, client); outdated entries are removed when they become the first."""


@dataclass
class Groups:
    """All groups that are open or wait for members. Plain data; every change of membership is a method here."""

    q_max: int
    """Steps that a group's fastest member is expected to take after its next combination."""

    all: dict[int, Group] = field(default_factory=dict)
    member: dict[ClientId, int] = field(default_factory=dict)
    speeds: dict[ClientId, float] = field(default_factory=dict)
    """Smoothed seconds per step of every client seen."""
    founded: int = 0
    dues: list[tuple[float, int]] = field(default_factory=list)
    """(due, group) of the open groups that a client can join, ascending."""
    returns: list[tuple[float, int]] = field(default_factory=list)
    """(latest + fastest * q_max, group) of the open groups, ascending: the candidate times of a new group."""

    def of(self, client: ClientId) -> Group | None:
        """The group of which this client is a member, if any."""
        return self.all.get(self.member.get(client, -1))

    def join(self, s: float, now: float, low: int, high: int) -> tuple[int, Group] | None:
        """The most steps in [low, high] that end when an open group is due, and that group; ties go to the newest."""
        best, found = low, -1
        at = bisect_left(self.dues, (now + (high + 1) * s + SLACK, 0))
        while at > 0:
            at -= 1
            due, number = self.dues[at]
            q = whole_steps(due - now, s)
            if q < best or due <= now + SLACK:
                break
            if q <= high:
                best, found = q, max(number, found)
        return None if found < 0 else (best, self.all[found])

    def found(self, s: float, now: float, low: int, high: int, factor: float) -> tuple[int, Group]:
        """The steps of a new group's first member, and the group; its deadline is `factor` times the expected time."""
        steps = high
        at = bisect_left(self.returns, (now + (high + 1) * s + SLACK, 0))
        while at > 0:
            at -= 1
            back, number = self.returns[at]
            latest, q = self.all[number].latest, whole_steps(back - now, s)
            if q <= high and latest is not None and latest > now + SLACK:
                steps = max(low, q)
                break
        group = self.new()
        group.due, group.latest = now + steps * s, now + factor * steps * s
        insort(self.dues, (group.due, group.id))
        return steps, group

    def new(self) -> Group:
        """An open group without times or members."""
        group = Group(self.founded)
        self.founded += 1
        self.all[group.id] = group
        return group

    def enter(self, client: ClientId, group: Group) -> None:
        """Add a client to the members that the group waits for."""
        group.waiting.add(client)
        self.member[client] = group.id
        self.update_speed(client, group)

    def arrive(self, client: ClientId, job: JobId, group: Group) -> None:
        """Record a member's answer."""
        group.waiting.remove(client)
        group.arrived[client] = job
        self.update_speed(client, group)

    def quit(self, client: ClientId, group: Group) -> None:
        """Remove a member from its group, and the group if it was the last member."""
        del self.member[client]
        group.waiting.discard(client)
        if not group.waiting and not group.arrived:
            self.close(group)
            del self.all[group.id]
        else:
            self._retime(group)

    def close(self, group: Group) -> None:
        """Close a group: no client joins it any more, and members without an answer are late."""
        if group.open:
            _remove(self.dues, (group.due, group.id))
            _remove(self.returns, (self._return(group), group.id))
        group.open, group.pace = False, []

    def dismiss(self, group: Group) -> tuple[ClientId, ...]:
        """Remove the members of a closed group that have answered, and return them, fastest first."""
        clients = sorted(group.arrived, key=lambda c: (self.speeds[c], c))
        for client in clients:
            del self.member[client]
        group.arrived = {}
        if not group.waiting:
            del self.all[group.id]
        return tuple(clients)

    def update_speed(self, client: ClientId, group: Group) -> None:
        """Record that a member's speed is new or has changed."""
        if group.open and client in self.speeds:
            heapq.heappush(group.pace, (self.speeds[client], client))
            self._retime(group)

    def _retime(self, group: Group) -> None:
        pace = group.pace
        while pace and (pace[0][0] != self.speeds[pace[0][1]] or self.member.get(pace[0][1]) != group.id):
            heapq.heappop(pace)
        fastest = pace[0][0] if pace else math.inf
        if group.open and fastest != group.fastest:
            _remove(self.returns, (self._return(group), group.id))
            group.fastest = fastest
            if math.isfinite(self._return(group)):
                insort(self.returns, (self._return(group), group.id))

    def _return(self, group: Group) -> float:
        if group.due is None or group.latest is None:
            return math.inf  # the initial group has no planned times
        return group.latest + group.fastest * self.q_max


def whole_steps(seconds: float, s: float) -> int:
    """Steps of s seconds that fit, with a tolerance for quotients that rounding puts just below an integer."""
    return math.floor(seconds / s + 1e-9)


def _remove(entries: list[tuple[float, int]], entry: tuple[float | None, int]) -> None:
    """Remove an entry from an ascending list if present (a group without times is in none)."""
    when, number = entry
    if when is None:
        return
    at = bisect_left(entries, (when, number))
    if at < len(entries) and entries[at] == (when, number):
        del entries[at]
