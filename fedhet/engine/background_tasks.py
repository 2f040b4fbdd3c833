"""Server tasks: computation of the server that a transform asks for when an update arrives; the run goes on meanwhile.

A task takes `seconds` of the run's clock. When it is done, the transform gets the result, the update enters the buffer
and the schedule sees it arrive. A result depends on the task's input alone, so it has the same bits whichever executor
computes it, and when.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from fedhet.protocols import Transform, View
from fedhet.types import JobId, Memory, Tree, Update


@runtime_checkable
class AsksServerTasks(Protocol):
    """A transform with server tasks, in addition to the hooks that every transform has."""

    def prepare(self, update: Update, view: View, memory: Memory) -> tuple[Tree, float] | None:
        """Server, when an update arrives: the task's input and its cost, seconds above 0 of the run's clock; or None
        for no task."""
        ...

    def run(self, task: Tree) -> Tree:
        """Compute the result from the input, in any process; a pure function."""
        ...

    def complete(self, update: Update, result: Tree, memory: Memory) -> None:
        """Server, when the task is done: store the result until the update is combined."""
        ...


@dataclass(frozen=True, slots=True)
class ServerTask:
    """An open task. `transform` is the name of the transform that asked for it, `due` the second of the run at which it
    is done."""

    update: Update
    transform: str
    input: Tree
    due: float
    seconds: float
    """From the update's dispatch to its arrival."""


class TaskExecutor(Protocol):
    """Computes server tasks."""

    def begin(self, task: ServerTask) -> None:
        """Take a new task; its result is asked for when it is due."""
        ...

    def result(self, task: ServerTask) -> Tree:
        """The result, asked for once; waits for it."""
        ...

    def forget(self, task: ServerTask) -> None:
        """The result will not be asked for."""
        ...


@dataclass
class InlineExecutor:
    """Computes a task in the server itself, when the result is asked for."""

    transforms: Mapping[str, Transform]

    def begin(self, task: ServerTask) -> None:
        return None

    def result(self, task: ServerTask) -> Tree:
        transform = self.transforms[task.transform]
        assert isinstance(transform, AsksServerTasks)
        return transform.run(task.input)

    def forget(self, task: ServerTask) -> None:
        return None


@dataclass
class ServerTasks:
    """The open tasks by job, and the executor that computes them."""

    executor: TaskExecutor
    open: dict[JobId, ServerTask] = field(default_factory=dict)

    @property
    def next_due(self) -> float | None:
        """The second of the run at which the next task is done; None if none is open."""
        return min((task.due for task in self.open.values()), default=None)

    def take(self, task: ServerTask) -> None:
        """Add a task."""
        self.open[task.update.job.id] = task
        self.executor.begin(task)

    def set_executor(self, executor: TaskExecutor) -> None:
        """Use another executor from now on; it begins all open tasks."""
        self.executor = executor
        for task in self.open.values():
            executor.begin(task)

    def due(self, now: float) -> ServerTask | None:
        """Remove and return the next task that is done by `now`, in order of (time, job); None if there is none."""
        done = [(task.due, job) for job, task in self.open.items() if task.due <= now]
        return self.open.pop(min(done)[1]) if done else None

    def drop(self, job: JobId) -> ServerTask:
        """Remove and return the task of a job whose update is dropped."""
        task = self.open.pop(job)
        self.executor.forget(task)
        return task
