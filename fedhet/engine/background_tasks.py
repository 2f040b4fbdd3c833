"""Work of the server's own that takes its time: a layer asks for it when an update arrives, the run goes on meanwhile.

The update is in until the chore is done, `seconds` of the run's clock later; then the schedule hears of its arrival and
the layer gets the result. What a chore gives depends on its task alone, so who does it, where and when shows in no bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from fedhet.protocols import Transform, View
from fedhet.types import JobId, Memory, Tree, Update


@runtime_checkable
class AsksServerTasks(Protocol):
    """A layer with server_tasks, beside the hooks every layer has."""

    def prepare(self, update: Update, view: View, memory: Memory) -> tuple[Tree, float] | None:
        """Server, when an update arrives: the task and what it costs, seconds above 0 of the run's clock; or None."""
        ...

    def run(self, task: Tree) -> Tree:
        """Do a task, in whatever process; pure."""
        ...

    def complete(self, update: Update, result: Tree, memory: Memory) -> None:
        """Server, when the time is over: keep the result until the update is combined."""
        ...


@dataclass(frozen=True, slots=True)
class ServerTask:
    """A task on its way. `layer` is the name of the layer that asked, `due` the second at which it is done."""

    update: Update
    layer: str
    task: Tree
    due: float
    seconds: float
    """From the update's dispatch to its arrival."""


class TaskExecutor(Protocol):
    """Whoever does server_tasks."""

    def begin(self, chore: ServerTask) -> None:
        """A chore comes up; its result will be asked for when it is due."""
        ...

    def result(self, chore: ServerTask) -> Tree:
        """The result, once; waits for it."""
        ...

    def forget(self, chore: ServerTask) -> None:
        """Nobody will ask for it."""
        ...


@dataclass
class InlineExecutor:
    """The server itself, when the result is asked for."""

    layers: Mapping[str, Transform]

    def begin(self, chore: ServerTask) -> None:
        return None

    def result(self, chore: ServerTask) -> Tree:
        layer = self.layers[chore.layer]
        assert isinstance(layer, AsksServerTasks)
        return layer.run(chore.task)

    def forget(self, chore: ServerTask) -> None:
        return None


@dataclass
class ServerTasks:
    """Those that are not done, by job, and the hands that do them."""

    hands: TaskExecutor
    open: dict[JobId, ServerTask] = field(default_factory=dict)

    @property
    def next_due(self) -> float | None:
        """The second at which the next one is done."""
        return min((chore.due for chore in self.open.values()), default=None)

    def take(self, chore: ServerTask) -> None:
        """A new one."""
        self.open[chore.update.job.id] = chore
        self.hands.begin(chore)

    def set_executor(self, hands: TaskExecutor) -> None:
        """Other hands from now on; what is open is begun by them."""
        self.hands = hands
        for chore in self.open.values():
            hands.begin(chore)

    def due(self, now: float) -> ServerTask | None:
        """The next one that is done by `now`, in order of (time, job); it is not open any more."""
        done = [(chore.due, job) for job, chore in self.open.items() if chore.due <= now]
        return self.open.pop(min(done)[1]) if done else None

    def drop(self, job: JobId) -> ServerTask:
        """One that nobody waits for any more."""
        chore = self.open.pop(job)
        self.hands.forget(chore)
        return chore
