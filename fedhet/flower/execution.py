"""One message to a ClientApp and its outcome: the reply or an error reply, and the client's state after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, Error, Message, RecordDict

from fedhet.flower.compat import ErrorCode

App = Callable[[Message, Context], Message]


@dataclass(slots=True)
class Outcome:
    """The reply (an error reply if the client raised or its worker died) and the client's state after it."""

    reply: Message
    state: RecordDict


def execute(app: App, message: Message, context: Context) -> Outcome:
    """Run one message. If the client raises, its state stays as it was: partial changes are discarded."""
    before = RecordDict(dict(context.state))
    try:
        reply = app(message, context)
    except Exception as error:  # the client's own failure, reported to the server as Flower does
        reason = f"{type(error).__name__}: {error}"
        return Outcome(Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message), before)
    return Outcome(reply, context.state)
