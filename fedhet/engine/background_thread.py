"""Server tasks in real time: a thread computes them while the server receives messages.

Kernels release the interpreter lock while they compute, so one thread is enough for both to go on. If a task is not
ready when it is due, the server waits for it. The task's input is copied when it begins, since the server may reuse its
memory.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from fedhet.engine.background_tasks import InlineExecutor, ServerTask
from fedhet.types import JobId, Tree


@dataclass
class ThreadExecutor:
    """A `TaskExecutor` that begins tasks at once, one after the other. A context manager: at its end, tasks that have
    not begun are cancelled."""

    inline: InlineExecutor
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "server_tasks"))
    _begun: dict[JobId, Future[Tree]] = field(default_factory=dict)

    def __enter__(self) -> ThreadExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def begin(self, task: ServerTask) -> None:
        copy = replace(task, input={name: leaf.clone() for name, leaf in task.input.items()})
        self._begun[task.update.job.id] = self._thread.submit(self.inline.result, copy)

    def result(self, task: ServerTask) -> Tree:
        return self._begun.pop(task.update.job.id).result()

    def forget(self, task: ServerTask) -> None:
        self._begun.pop(task.update.job.id).cancel()
