"""The global generators of Python, NumPy and PyTorch, for code that is not ours and draws from them.

Nothing of fedhet's own draws from these (see `fedhet.numerics.rng`). Somebody's Flower app does, on both sides: its
server has one stream for the run, its clients one for every message, named by client and turn. So no draw depends on
who else drew, nor on the process it was drawn in.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Context, Message

from fedhet.flower.execution import App
from fedhet.numerics.rng import number, seeded


@dataclass(frozen=True)
class Seeded:
    """A client app that begins every message with generators of its own: of this seed and the message's name."""

    app: App
    seed: int

    def __call__(self, message: Message, context: Context) -> Message:
        with seeded(number(self.seed, f"message {message.metadata.message_id}")):
            return self.app(message, context)
