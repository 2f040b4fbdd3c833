"""Seeds for the global generators of Python, NumPy and PyTorch, for foreign code that draws from them.

fedhet itself does not draw from these (see `fedhet.numerics.rng`). A Flower app does, on both sides: its server has one
stream for the run, its clients one for every message, keyed by client and turn. So no draw depends on other clients'
draws, nor on the process.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Context, Message

from fedhet.flower.execution import App
from fedhet.numerics.rng import number, seeded


@dataclass(frozen=True)
class Seeded:
    """A client app that seeds the global generators for every message, from its seed and the message's id."""

    app: App
    seed: int

    def __call__(self, message: Message, context: Context) -> Message:
        with seeded(number(self.seed, f"message {message.metadata.message_id}")):
            return self.app(message, context)
