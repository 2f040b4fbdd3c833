"""FedAT: tiers of similar speed, each training synchronously at its own pace.

The first jobs of all clients are combined into version 1 and their times are measured. The clients, sorted by (seconds
per step, id), are split into tiers of equal size, and from then on every tier runs its own synchronous rounds. The
transform `strategies.staleness.tiers` stores the tiers' models and computes their weighted sum. Clients that were not
measured at the start belong to the last tier.

Chai et al., "FedAT: A High-Performance and Communication-Efficient Federated Learning System with Asynchronous Tiers",
arXiv:2010.05958.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from fedhet.protocols import View
from fedhet.types import (
    Aggregate,
    Arrived,
    Assign,
    ClientId,
    Command,
    Drop,
    Event,
    Failed,
    JobId,
    Joined,
    Left,
    Started,
    Wake,
    Woke,
)
from strategies.schedules.waiting import MIN_WAKE_DELAY, SLACK, at_least, positive


@dataclass
class Tier:
    """A tier: its clients and the state of its round."""

    clients: set[ClientId] = field(default_factory=set)
    waiting: set[ClientId] = field(default_factory=set)
    arrived: list[JobId] = field(default_factory=list)
    open: bool = False
    opened: float = 0.0
    resume: float = 0.0


@dataclass
class FedAT:
    """FedAT: tiers of clients of similar speed, each in its own synchronous rounds.

    tiers: number of tiers. per_round: clients per round of a tier; None: all of its idle clients. pause_seconds: least
    time from the start of a round in which all clients failed to the tier's next round.

    Raises ValueError for values out of range.
    """

    apart: ClassVar[bool] = True
    """Updates of one tier are not carried into another's combination."""

    tiers: int = 5
    per_round: int | None = None
    pause_seconds: float = 1.0

    parts: list[Tier] = field(init=False, default_factory=lambda: [Tier()])
    """One tier with all clients while they are measured, then the tiers, fastest first."""
    of: dict[ClientId, int] = field(init=False, default_factory=dict)
    measured: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        at_least("tiers", self.tiers, 1)
        at_least("per_round", self.per_round, 1)
        positive("pause_seconds", self.pause_seconds)

    def at_a_time(self, clients: int) -> int:
        tier = max(1, clients // self.tiers)
        return tier if self.per_round is None else min(self.per_round, tier)

    def react(self, event: Event, view: View) -> Iterator[Command]:
        touched = self.parts
        match event:
            case Started():
                self.parts[0].clients.update(view.roster)
            case Arrived(job):
                part = self._part(job.client)
                if job.client in part.waiting and job.sent >= part.opened - SLACK:
                    part.waiting.remove(job.client)
                    part.arrived.append(job.id)
                else:
                    yield Drop((job.id,), "late")
                touched = [part]
            case Failed(job):
                part = self._part(job.client)
                part.waiting.discard(job.client)
                touched = [part]
            case Joined(client):
                part = self._part(client)
                part.clients.add(client)
                touched = [part]
            case Left(client):
                part = self._part(client)
                part.clients.discard(client)
                part.arrived = [job for job in part.arrived if job in view.buffer]  # its own may have been withdrawn
                if not any(job.client == client for job in view.inflight.values()):
                    part.waiting.discard(client)
                touched = [part]
            case Woke():
                pass
            case _:
                return
        for part in touched:
            yield from self._advance(part, view)

    def _part(self, client: ClientId) -> Tier:
        return self.parts[self.of.get(client, len(self.parts) - 1)]

    def _advance(self, part: Tier, view: View) -> Iterator[Command]:
        """Close the tier's round if all its clients have answered, and open the next."""
        if part.waiting:
            return
        opening = [part]
        if part.open and part.arrived:
            jobs, part.arrived, part.open = tuple(part.arrived), [], False
            if not self.measured:
                self._sort([view.buffer[i].client for i in jobs], view)
                opening = self.parts
            yield Aggregate(jobs)
        elif part.open:
            part.open, part.resume = False, part.opened + self.pause_seconds
        for each in opening:
            yield from self._open(each, view)

    def _sort(self, clients: list[ClientId], view: View) -> None:
        """Split the measured clients into tiers; all others go to the last one."""
        ranked = sorted(clients, key=lambda c: (view.observed(c).seconds_per_step or 0.0, c))
        self.of = {c: rank * self.tiers // len(ranked) for rank, c in enumerate(ranked)}
        clients_to_place = self.parts[0].clients
        self.parts = [Tier() for _ in range(self.tiers)]
        for client in clients_to_place:
            self._part(client).clients.add(client)
        self.measured = True

    def _open(self, part: Tier, view: View) -> Iterator[Command]:
        if view.now < part.resume - SLACK:
            yield Wake(part.resume)
            return
        clients = sorted(c for c in part.clients if c in view.idle)
        if not clients:
            online = view.next_online() if part.clients else None
            if online is not None:
                yield Wake(max(online, view.now + MIN_WAKE_DELAY))
            return
        if self.per_round is not None and self.measured and len(clients) > self.per_round:
            chosen = view.rng("tier").choice(clients, self.per_round, replace=False)
            clients = sorted(int(c) for c in chosen)
        part.waiting, part.open, part.opened = set(clients), True, view.now
        for client in clients:
            yield Assign(client)
