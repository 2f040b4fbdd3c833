"""Work of the server's own that takes its time: a layer asks for it when an update arrives, the run goes on meanwhile.

The update is in until the chore is done, `seconds` of the run's clock later; then the schedule hears of its arrival and
the layer gets the result. What a chore gives depends on its task alone, so who does it, where and when shows in no bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from fedhet.protocols import Layer, View
from fedhet.types import JobId, Memory, Tree, Update


@runtime_checkable
class Pondering(Protocol):
    """A layer with chores, beside the hooks every layer has."""

    def ponder(self, update: Update, view: View, memory: Memory) -> tuple[Tree, float] | None:
        """Server, when an update arrives: the task and what it costs, seconds above 0 of the run's clock; or None."""
        ...

    def solve(self, task: Tree) -> Tree:
        """Do a task, in whatever process; pure."""
        ...

    def solved(self, update: Update, result: Tree, memory: Memory) -> None:
        """Server, when the time is over: keep the result until the update is combined."""
        ...


@dataclass(frozen=True, slots=True)
class Chore:
    """A task on its way. `layer` is the name of the layer that asked, `due` the second at which it is done."""

    update: Update
    layer: str
    task: Tree
    due: float
    seconds: float
    """From the update's dispatch to its arrival."""


class Hands(Protocol):
    """Whoever does chores."""

    def begin(self, chore: Chore) -> None:
        """A chore comes up; its result will be asked for when it is due."""
        ...

    def result(self, chore: Chore) -> Tree:
        """The result, once; waits for it."""
        ...

    def forget(self, chore: Chore) -> None:
        """Nobody will ask for it."""
        ...


@dataclass
class Own:
    """The server itself, when the result is asked for."""

    layers: Mapping[str, Layer]

    def begin(self, chore: Chore) -> None:
        return None

    def result(self, chore: Chore) -> Tree:
        layer = self.layers[chore.layer]
        assert isinstance(layer, Pondering)
        return layer.solve(chore.task)

    def forget(self, chore: Chore) -> None:
        return None


@dataclass
class Chores:
    """Those that are not done, by job, and the hands that do them."""

    hands: Hands
    open: dict[JobId, Chore] = field(default_factory=dict)

    @property
    def next_due(self) -> float | None:
        """The second at which the next one is done."""
        return min((chore.due for chore in self.open.values()), default=None)

    def take(self, chore: Chore) -> None:
        """A new one."""
        self.open[chore.update.job.id] = chore
        self.hands.begin(chore)

    def employ(self, hands: Hands) -> None:
        """Other hands from now on; what is open is begun by them."""
        self.hands = hands
        for chore in self.open.values():
            hands.begin(chore)

    def due(self, now: float) -> Chore | None:
        """The next one that is done by `now`, in order of (time, job); it is not open any more."""
        done = [(chore.due, job) for job, chore in self.open.items() if chore.due <= now]
        return self.open.pop(min(done)[1]) if done else None

    def drop(self, job: JobId) -> Chore:
        """One that nobody waits for any more."""
        chore = self.open.pop(job)
        self.hands.forget(chore)
        return chore
