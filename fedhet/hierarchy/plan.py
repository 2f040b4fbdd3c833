"""Who sums what with whom: decided from declared hosts and the order of arrival alone, so that it repeats.

LIFL (Qi et al., "LIFL: A Lightweight, Event-driven Serverless Platform for Federated Learning", arXiv:2405.10968)
plans a tree per host: ceil(Q / I) leaves for a smoothed queue of Q updates and I updates a leaf, one middle, and a top.
Updates go to hosts by best fit, the fullest host that still has room, so that few hosts take part and most sums meet
in one memory. Here the plan has two halves. Which updates are summed with which (`Groups`) decides rounding, so it
depends on nothing measured; how many processes do it (`Scale`) follows the queue, and shows in no result.

How many updates a leaf sums, k, can be planned as well. A sum of k vectors makes k + 1 passes over their numbers, k
reads and one write. A host with n updates has L = ceil(n / k) leaves and, if it has several, a middle that sums these.
While updates arrive one after the other, full leaves are done before the next update is there; after the last arrival
its leaf and the middle are left:

    left(k) = (k + 1) + (L + 1),  or n + 1 with one leaf;   all passes are n + L, and L + 1 more with a middle

k + ceil(n / k) is smallest near k = sqrt(n). As a function of L, ceil(n / L) + L does not grow while L (L + 1) <= n and
does not fall from L (L - 1) >= n on; so the first L with L (L + 1) > n is a best one, its equals lie next to it, and of
these the fewest leaves make the fewest passes. One leaf is as good up to n = 7. Neither the number of processes nor
whether they sum early enters: they may differ between machines, and the bits of a result may not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

PLACEMENTS = ("best_fit", "first_fit", "worst_fit")


def place(load: Mapping[str, int], capacity: Mapping[str, int], how: str = "best_fit") -> str:
    """The host for one more update. `load` counts updates in service, `capacity` how many a host can serve.

    best_fit: the fullest that has room; first_fit: the first that has room; worst_fit: the emptiest, which is what
    balancing by least connections does. Ties go to the host declared first. Where none has room the update waits at
    the host that is over its capacity by the smallest share.
    """
    room = {host: most - load.get(host, 0) for host, most in capacity.items()}
    open_ = [host for host, left in room.items() if left > 0]
    if not open_:
        return min(capacity, key=lambda host: load.get(host, 0) / capacity[host])
    if how == "best_fit":
        return min(open_, key=lambda host: room[host])
    return open_[0] if how == "first_fit" else max(open_, key=lambda host: room[host])


def fullest(count: int, capacity: Mapping[str, int], how: str = "best_fit") -> int:
    """The most updates that one host gets of `count`."""
    load: dict[str, int] = {}
    for _ in range(count):
        host = place(load, capacity, how)
        load[host] = load.get(host, 0) + 1
    return max(load.values(), default=0)


def left(count: int, fan_in: int) -> int:
    """Passes over the model that a host with `count` updates has left after the last arrival."""
    leaves = math.ceil(count / fan_in)
    return count + 1 if leaves <= 1 else (fan_in + 1) + (leaves + 1)


def planned(count: int) -> int:
    """The fan-in with the fewest passes left for a host with `count` updates, and of equals the fewest in all."""
    leaves = (math.isqrt(4 * count + 1) - 1) // 2 + 1  # the first L with L (L + 1) > count
    best = leaves + math.ceil(count / leaves)
    while leaves > 1 and leaves - 1 + math.ceil(count / (leaves - 1)) == best:
        leaves -= 1
    if count + 1 <= best + 2:
        leaves = 1
    return max(2, math.ceil(count / leaves))


@dataclass
class Groups(Generic[T]):
    """The leaves' shares by host, each host's updates in the order of arrival, `fan_in` at a time.

    A further arrival opens or fills the last group of one host and changes nothing else: what is full can be summed at
    once. `by_host` keeps hosts in the order declared; hosts without an update have no groups.
    """

    capacity: Mapping[str, int]
    fan_in: int
    how: str = "best_fit"
    by_host: dict[str, list[list[T]]] = field(init=False)
    _load: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.by_host = {host: [] for host in self.capacity}

    def add(self, one: T) -> list[T]:
        """The group that the next arrival belongs to, with it in it."""
        host = place(self._load, self.capacity, self.how)
        self._load[host] = self._load.get(host, 0) + 1
        held = self.by_host[host]
        if not held or len(held[-1]) == self.fan_in:
            held.append([])
        held[-1].append(one)
        return held[-1]


@dataclass
class Scale:
    """How many processes the queue asks for: smoothed length over fan-in, growing at once and shrinking slowly.

    `smoothing` is the share the past keeps (0.7 in LIFL), `period` the seconds between two looks, `quiet` the looks in
    a row that must ask for less before there is less, `idle` the seconds without work after which there is none.
    """

    fan_in: int
    most: int
    smoothing: float = 0.7
    period: float = 5.0
    quiet: int = 3
    idle: float = 30.0
    queue: float = 0.0
    count: int = 0
    _looked: float = field(default=-math.inf, repr=False)
    _worked: float = field(default=-math.inf, repr=False)
    _calm: int = field(default=0, repr=False)

    def look(self, now: float, waiting: int) -> int:
        """The number of processes there should be at the second `now`, with `waiting` updates not yet summed."""
        if waiting:
            self._worked = now
        elif now - self._worked >= self.idle:
            self.queue, self.count, self._calm = 0.0, 0, 0
            return 0
        if now - self._looked >= self.period:
            self._looked = now
            self.queue = self.smoothing * self.queue + (1.0 - self.smoothing) * waiting
            self._calm = self._calm + 1 if self._asked() < self.count else 0
            if self._calm >= self.quiet:
                self.count, self._calm = self._asked(), 0
        if waiting:
            self.count = max(self.count, self._asked(), 1)
        return self.count

    def _asked(self) -> int:
        return min(self.most, math.ceil(self.queue / self.fan_in))
