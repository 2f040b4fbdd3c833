"""Jobs without their messages: what an app needs of several at once, for apps that can answer them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flwr.app import Context, Message


class JobRecord(NamedTuple):
    """What an app needs of a message or makes of it."""

    text: str
    payload: Any
    """Bytes, or a view of them."""


@runtime_checkable
class BatchingApp(Protocol):
    """An app that can answer several messages at once, from what it needs of them alone."""

    def __call__(self, message: Message, context: Context) -> Message: ...

    def record_of(self, message: Message, context: Context) -> JobRecord | None:
        """What `together` needs of a message; None if it is for a call, such as for a client with a state."""
        ...

    def run_batch(self, briefs: Sequence[JobRecord], rooms: Sequence[memoryview | None]) -> Sequence[JobRecord] | None:
        """What `reply` needs, in order; None if these are for one call each. An answer's payload may be written into
        its room, from where it need not be copied."""
        ...

    def reply(self, message: Message, answer: JobRecord) -> Message:
        """What the app would have answered to the message if it had been called."""
        ...
