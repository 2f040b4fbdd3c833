"""Hierarchical aggregation: leaves sum updates as they arrive, a middle per host sums its leaves, one top divides.

Qi et al., "LIFL: A Lightweight, Event-driven Serverless Platform for Federated Learning", arXiv:2405.10968: shared
memory with descriptor hand-over, eager sums, placement on hosts, aggregators that are reused, and gone without work.

Eager sums need a rule that is a quotient of two sums, sum_i c_i u_i over a function of sum_i m_i, in which c_i and m_i
depend on update i alone (`fedhet.engine.aggregator.Additive`): the weighted mean in all its forms is one, and so is the
mean of updates that are each cut to an absolute length. Layers that change an update when it is combined are refused
with these, because by then it has been added. Carrying sums and dividing once at the top also keeps clear of dividing
each arrival by a running total, which weighs early updates wrongly.

All other rules on rows (`fedhet.bases.rule.AbstractRule`) see all updates together: what reads the Gram matrix, such
as Krum, the geometric median or Flag; medians, trimmed means and other functions of single coordinates; Bulyan, which
is both; normalised averaging; mixtures in front of any of these. Their updates wait in shared memory, and the work is
split by columns instead, see `fedhet.hierarchy.column_shards`; any layer goes with them. What is not a rule on rows,
such as simulated attackers who replace updates in front of a rule, is refused, and so are spaces that combine in their
own way.

The tree is that of `fedhet.hierarchy.plan`: it depends on the order of arrival and the hosts declared, never on how
many processes there are, whether they were early, or which of them died, so neither do the bits of the result. They
differ from those of flat aggregation in the last place, because other terms are added first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

from fedhet.bases import AbstractDense, AbstractTransform
from fedhet.bases.rule import AbstractRule
from fedhet.engine.aggregator import Additive, KnownGroupSize
from fedhet.engine.method import Method, Misfit
from fedhet.hierarchy.column_shards import Columns
from fedhet.hierarchy.plan import PLACEMENTS, Groups, Scale, fullest, planned
from fedhet.hierarchy.processes import Team
from fedhet.hierarchy.reduction_tree import Aggregators
from fedhet.types import JobId

AUTO = "auto"
"""The fan-in that is planned: of all tried it leaves the least to do (experiments/results/lifl.md)."""


@dataclass(frozen=True)
class Hierarchical:
    """A tree of sums in processes of their own, or for rules that compare updates a split by columns.

    processes: the most there are at a time, null for one less than processors (at least one). eager: work begins when
    updates are there, not at the combination: leaves sum, or processes for columns start. idle_seconds: without work,
    after which a process ends.

    The tree alone has hosts: how many updates each can serve at a time. All run on this machine; they say what is
    summed together.
    fan_in: updates a leaf sums; "auto" plans it from the updates that the schedule combines at a time, or where it
    does not know, from as many as there are clients and the hosts can serve (`fedhet.hierarchy.plan`); a notice of
    the run says what was planned. placement: best_fit, first_fit or worst_fit. smoothing: how processes follow the
    queue; see `Scale`.

    Raises ValueError for values out of range.
    """

    hosts: Sequence[int] = (64,)
    fan_in: int | str = AUTO
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
        if self.fan_in != AUTO and (type(self.fan_in) is not int or self.fan_in < 2):
            raise ValueError(
                f"fan_in={self.fan_in} must be {AUTO}, or a whole number from 2 on: a leaf of one update only copies it"
            )
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
            getattr(space, hook) is not getattr(AbstractDense, hook) for hook in ("combine", "gram", "decode_delta")
        ):
            raise Misfit(f"aggregation=hierarchical adds vectors, but space {space.__name__} combines in its own way")
        for _, layer in method.transforms if summed(rule) else ():
            if getattr(type(layer), "arrive", None) is not AbstractTransform.arrive:
                raise Misfit(
                    f"aggregation=hierarchical sums updates as they came, but layer {type(layer).__name__} changes "
                    "them when they are combined; use aggregation=flat"
                )

    def begin(self, method: Method, clients: int) -> Aggregators | Columns:
        """The aggregator of one run. Raises Misfit if this method cannot be split."""
        self.check(method)
        most = self.processes if self.processes is not None else max(1, len(os.sched_getaffinity(0)) - 1)
        team = Team(most, self.idle_seconds)
        if not summed(method.rule):
            return Columns(team, eager=self.eager)
        leaf = self.leaf(method, clients)
        new = partial(Groups[JobId], self.capacity, leaf, self.placement)
        scale = Scale(leaf, most, self.smoothing, idle=self.idle_seconds)
        return Aggregators(method.rule, new, team, scale, eager=self.eager)

    def notices(self, method: Method, clients: int) -> tuple[str, ...]:
        """How updates are combined, and what was planned for it."""
        if not summed(method.rule):
            return (f"aggregation=hierarchical: rule {type(method.rule).__name__} is carried out by columns",)
        told = f"aggregation=hierarchical: leaves sum {self.leaf(method, clients)} updates each"
        if self.fan_in == AUTO:
            count, most = self._expected(method, clients)
            told += f", planned for {count} at a time, {most} of them on the fullest host"
        return (told,)

    def leaf(self, method: Method, clients: int) -> int:
        """Updates that a leaf sums, planned if that is to be planned."""
        return self.fan_in if isinstance(self.fan_in, int) else planned(self._expected(method, clients)[1])

    @property
    def capacity(self) -> dict[str, int]:
        """How many updates each host can serve at a time, by name."""
        return {f"host{n}": most for n, most in enumerate(self.hosts)}

    def _expected(self, method: Method, clients: int) -> tuple[int, int]:
        """Updates combined at a time, and how many of them the fullest host gets."""
        schedule = method.schedule
        count = schedule.at_a_time(clients) if isinstance(schedule, KnownGroupSize) else None
        count = min(clients, sum(self.hosts)) if count is None else count
        return count, fullest(count, self.capacity, self.placement)


def summed(rule: object) -> TypeGuard[Additive]:
    """Whether sums can be formed as updates arrive."""
    return isinstance(rule, Additive) and not rule.compares()
