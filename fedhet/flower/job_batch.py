"""Jobs without Flower messages, for apps that can run several at once: the job's text and its payload alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flwr.app import Context, Message


class JobRecord(NamedTuple):
    """The parts of a request that an app needs, or those of its answer: one line of text, and the encoded payload."""

    text: str
    payload: Any
    """Bytes or a memoryview."""


@runtime_checkable
class BatchingApp(Protocol):
    """A client app that can answer several job records at once."""

    def __call__(self, message: Message, context: Context) -> Message: ...

    def record_of(self, message: Message, context: Context) -> JobRecord | None:
        """The record of a message for `run_batch`; None if the message needs a call, as for a client with a state."""
        ...

    def run_batch(self, jobs: Sequence[JobRecord], buffers: Sequence[memoryview | None]) -> Sequence[JobRecord] | None:
        """The answers in order; None if each of these jobs needs a call. The payload of an answer may be written into
        its buffer, from which it need not be copied."""
        ...

    def reply(self, message: Message, answer: JobRecord) -> Message:
        """The reply message that a call of the app would have returned."""
        ...
