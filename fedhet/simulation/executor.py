"""What the virtual grid asks of whatever computes its clients' answers: the pool on this machine, or a cluster.

A task's outcome depends on its message and its context alone. When, where and in which order tasks are computed must
never show, so an executor is free in all of that: urgency is a hint. A task whose process died is an outcome too, an
error reply with the state the client had before.
"""

from __future__ import annotations

from typing import Protocol

from flwr.app import Context, Message

from fedhet.flower.execution import Outcome


class Executor(Protocol):
    """Takes tasks and hands out their outcomes, each once, in the order they are asked for."""

    def submit(self, number: int, urgency: int, message: Message, context: Context) -> None:
        """Take a task on; returns at once. Lower urgency (nanoseconds of virtual arrival) is computed earlier."""
        ...

    def result(self, number: int) -> Outcome:
        """Wait for a task's outcome and forget it. Raises KeyError if it was never submitted."""
        ...

    def close(self) -> None:
        """End the workers; tasks that are not done are dropped."""
        ...
