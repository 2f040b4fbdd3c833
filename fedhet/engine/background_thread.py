"""The server's server_tasks in real time: in a thread of its own, while the server hears its clients.

Kernels let go of the interpreter while they compute, so one thread is enough for both to go on; a chore that is not
ready when it is due is waited for. The task is copied when it comes up, since the server may use its memory again.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from fedhet.engine.background_tasks import InlineExecutor, ServerTask
from fedhet.types import JobId, Tree


@dataclass
class ThreadExecutor:
    """`TaskExecutor` that begin at once, one chore after the other. As a context: what is not done at its end is
    dropped."""

    own: InlineExecutor
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "server_tasks"))
    _begun: dict[JobId, Future[Tree]] = field(default_factory=dict)

    def __enter__(self) -> ThreadExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def begin(self, chore: ServerTask) -> None:
        copy = replace(chore, task={name: leaf.clone() for name, leaf in chore.task.items()})
        self._begun[chore.update.job.id] = self._thread.submit(self.own.result, copy)

    def result(self, chore: ServerTask) -> Tree:
        return self._begun.pop(chore.update.job.id).result()

    def forget(self, chore: ServerTask) -> None:
        self._begun.pop(chore.update.job.id).cancel()
