"""Hierarchical aggregation: leaves sum updates as they arrive, a middle per host sums its leaves, one top divides.

Qi et al., "LIFL: A Lightweight, Event-driven Serverless Platform for Federated Learning", arXiv:2405.10968: shared
memory with descriptor hand-over, eager sums, placement on hosts, aggregators that are reused, and gone without work.

Eager sums need a rule that is a quotient of two sums, sum_i c_i u_i over a function of sum_i m_i, in which c_i and m_i
depend on update i alone (`fedhet.aggregation.Additive`): the weighted mean in all its forms is one, and so is the mean
of updates that are each cut to an absolute length. Layers that change an update when it is combined are refused with
these, because by then it has been added. Carrying sums and dividing once at the top also keeps clear of dividing each
arrival by a running total, which weighs early updates wrongly.

All other rules on rows (`fedhet.bases.rule.AbstractRule`) see all updates together: what reads the Gram matrix, such
as Krum, the geometric median or Flag; medians, trimmed means and other functions of single coordinates; Bulyan, which
is both; normalised averaging; mixtures in front of any of these. Their updates wait in shared memory, and the work is
split by columns instead, see `fedhet.hierarchy.columns`; any layer goes with them. What is not a rule on rows, such as
simulated attackers who replace updates in front of a rule, is refused, and so are spaces that combine in their own way.

The tree is that of `fedhet.hierarchy.plan`: it depends on the order of arrival and the hosts declared, never on how
many processes there are, whether they were early, or which of them died, so neither do the bits of the result. They
differ from those of flat aggregation in the last place, because other terms are added first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from fedhet.aggregation import Additive
from fedhet.bases import AbstractDense, AbstractLayer
from fedhet.bases.rule import AbstractRule
from fedhet.compose import Method, Misfit
from fedhet.hierarchy.columns import Columns, vector
from fedhet.hierarchy.plan import PLACEMENTS, Groups, Scale
from fedhet.hierarchy.team import Part, Task, Team
from fedhet.protocols import Rule, Space, View
from fedhet.tree import FlatTree, Schema
from fedhet.types import JobId, Tree, Update


@dataclass(frozen=True)
class Hierarchical:
    """A tree of sums in processes of their own, or for rules that compare updates a split by columns.

    processes: the most there are at a time, null for one less than processors (at least one). eager: work begins when
    updates are there, not at the combination: leaves sum, or processes for columns start. idle_seconds: without work,
    after which a process ends.

    The tree alone has hosts: how many updates each can serve at a time. All run on this machine; they say what is
    summed together.
    fan_in: updates a leaf sums. placement: best_fit, first_fit or worst_fit. smoothing: how processes follow the queue;
    see `Scale`.

    Raises ValueError for values out of range.
    """

    hosts: Sequence[int] = (64,)
    fan_in: int = 4
    placement: str = "best_fit"
    eager: bool = True
    processes: int | None = None
    smoothing: float = 0.7
    idle_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not self.hosts or any(most < 1 for most in self.hosts):
            raise ValueError(
                f"hosts={list(self.hosts)} must be one host or more that can serve one update or more each"
            )
        if self.fan_in < 2:
            raise ValueError(f"fan_in={self.fan_in} must be at least 2: a leaf that sums one update only copies it")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement={self.placement!r} is not one of {', '.join(PLACEMENTS)}")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes={self.processes} must be at least 1, or null")
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"smoothing={self.smoothing} is not in [0, 1)")
        if not self.idle_seconds > 0.0:
            raise ValueError(f"idle_seconds={self.idle_seconds} must be positive")

    def check(self, method: Method) -> None:
        """Raises Misfit if this method can neither be summed piece by piece nor be split by columns."""
        rule = method.rule
        if not summed(rule) and not isinstance(rule, AbstractRule):
            raise Misfit(
                f"aggregation=hierarchical splits what rules ask of rows, but rule {type(rule).__name__} works on "
                "updates in its own way; use aggregation=flat"
            )
        space = type(method.space)
        if not issubclass(space, AbstractDense) or any(
            getattr(space, hook) is not getattr(AbstractDense, hook) for hook in ("combine", "gram", "accept")
        ):
            raise Misfit(f"aggregation=hierarchical adds vectors, but space {space.__name__} combines in its own way")
        for _, layer in method.layers if summed(rule) else ():
            if getattr(type(layer), "arrive", None) is not AbstractLayer.arrive:
                raise Misfit(
                    f"aggregation=hierarchical sums updates as they came, but layer {type(layer).__name__} changes "
                    "them when they are combined; use aggregation=flat"
                )

    def begin(self, method: Method) -> Aggregators | Columns:
        """The aggregator of one run. Raises Misfit if this method cannot be split."""
        self.check(method)
        if summed(method.rule):
            return Aggregators(self, method.rule)
        return Columns(self.most, self.idle_seconds, eager=self.eager)

    @property
    def most(self) -> int:
        """Processes at a time."""
        return self.processes if self.processes is not None else max(1, len(os.sched_getaffinity(0)) - 1)


def summed(rule: object) -> TypeGuard[Additive]:
    """Whether sums can be formed as updates arrive."""
    return isinstance(rule, Additive) and not rule.compares()


class Aggregators:
    """The live half: holds arrived updates in shared memory and has them summed. Not for more than one run."""

    def __init__(self, given: Hierarchical, rule: Additive) -> None:
        self._given, self._rule = given, rule
        self.team = Team(given.most, given.idle_seconds)
        self._scale = Scale(given.fan_in, given.most, given.smoothing, idle=given.idle_seconds)
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
        if self._given.eager and len(group) == self._given.fan_in:
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
        whole = self._rule.whole(sum(self._mass[u.job.id] for u in updates), len(updates), view)
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

    def _new(self) -> Groups[JobId]:
        capacity = {f"host{n}": most for n, most in enumerate(self._given.hosts)}
        return Groups(capacity, self._given.fan_in, self._given.placement)

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
