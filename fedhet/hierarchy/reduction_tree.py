"""A tree of sums while a run lives: updates arrive in shared memory, leaves sum them, middles and a top add up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fedhet.engine.aggregator import Additive
from fedhet.hierarchy.column_shards import vector
from fedhet.hierarchy.plan import Groups, Scale
from fedhet.hierarchy.processes import Part, Task, Team
from fedhet.numerics.tree import FlatTree, Schema
from fedhet.protocols import Rule, Space, View
from fedhet.types import JobId, Tree, Update


class Aggregators:
    """Holds arrived updates in shared memory and has them summed. Not for more than one run.

    rule: what is carried out. new: groups without an update. team, scale: processes, and how many. eager: leaves sum
    when they are full.
    """

    def __init__(
        self, rule: Additive, new: Callable[[], Groups[JobId]], team: Team, scale: Scale, *, eager: bool
    ) -> None:
        self.team = team
        self._rule, self._new, self._scale, self._eager = rule, new, scale, eager
        self._held: dict[JobId, Part] = {}
        self._groups = self._new()
        self._sums: dict[tuple[JobId, ...], Task] = {}
        self._share: dict[JobId, float] = {}
        self._mass: dict[JobId, float] = {}

    def arrived(self, update: Update) -> Update:
        """Take an update in and start the sum it completes. Returns it with its delta where it lies now.

        Raises ValueError unless the delta is one float32 vector.
        """
        job, part = update.job.id, self.team.hold(vector(update))
        factor, self._mass[job] = self._rule.part(update)
        self._held[job], self._share[job] = part, factor * update.scale
        group = self._groups.add(job)
        if self._eager and len(group) == self._groups.fan_in:
            self._sum_of(group)
        return replace(update, delta=FlatTree(Schema.of(update.delta), part.values))

    def dropped(self, jobs: Sequence[JobId]) -> None:
        """Forget updates that will not be combined."""
        self._forget(set(jobs))

    def combine(self, rule: Rule, updates: Sequence[Update], space: Space, view: View) -> Tree:
        """The rule's answer to these updates, whose partial sums are there already if they came one after the other."""
        wanted = {u.job.id for u in updates}
        groups = self._groups
        if wanted != set(self._held):  # others arrived in between: their groups do not hold
            groups = self._new()
            for job in self._held:
                if job in wanted:
                    groups.add(job)
        hosts = [[self._sum_of(group) for group in held] for held in groups.by_host.values() if held]
        whole = self._rule.divisor(sum(self._mass[u.job.id] for u in updates), len(updates), view)
        for leaves in hosts:
            self.team.wait(leaves)
        middles = [self._add(leaves) if len(leaves) > 1 else leaves[0] for leaves in hosts]
        self.team.wait(middles)
        top = self._add(middles) if len(middles) > 1 else middles[0]
        self.team.wait([top])
        mean = top.out.values.div_(whole)
        self._forget(wanted)
        first = updates[0].delta
        assert isinstance(first, FlatTree)
        return FlatTree(first.schema, mean)

    def close(self) -> None:
        """End the processes."""
        self.team.close()

    def _sum_of(self, group: Sequence[JobId]) -> Task:
        """A leaf's sum; computed once, whether it was asked for early or late."""
        key = tuple(group)
        if key not in self._sums:
            rows, c = [self._held[job] for job in key], [self._share[job] for job in key]
            self._sums[key] = self.team.submit(rows, c, self._wanted())
        return self._sums[key]

    def _add(self, sums: Sequence[Task]) -> Task:
        return self.team.submit([one.out for one in sums], [1.0] * len(sums), self._wanted())

    def _wanted(self) -> int:
        return self._scale.look(time.monotonic(), len(self._held))

    def _forget(self, jobs: set[JobId]) -> None:
        """Let go of updates, and of sums that they are part of; those that stay are grouped anew."""
        for job in jobs:
            del self._held[job], self._share[job], self._mass[job]
        self._sums = {key: one for key, one in self._sums.items() if not jobs.intersection(key)}
        self._groups = self._new()
        for job in self._held:
            self._groups.add(job)
