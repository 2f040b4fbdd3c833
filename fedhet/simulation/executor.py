"""The interface between the virtual grid and what computes its clients' answers: a pool on this machine, or a cluster.

A task's outcome depends on its message and its context alone. An executor may compute tasks at any time, anywhere and
in any order; urgency is a hint. The outcome of a task whose process died is an error reply, with the state that the
client had before.
"""

from __future__ import annotations

from typing import Protocol

from flwr.app import Context, Message

from fedhet.flower.execution import Outcome


class Executor(Protocol):
    """Takes tasks and returns their outcomes, each once, in any order."""

    def submit(self, number: int, urgency: int, message: Message, context: Context) -> None:
        """Submit a task; returns at once. Lower urgency (nanoseconds of virtual arrival) is computed earlier."""
        ...

    def result(self, number: int) -> Outcome:
        """Wait for a task's outcome, once. Raises KeyError if it was not submitted."""
        ...

    def close(self) -> None:
        """End the workers; unfinished tasks are dropped."""
        ...
