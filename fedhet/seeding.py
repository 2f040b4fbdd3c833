"""The global generators of Python, NumPy and PyTorch, for code that is not ours and draws from them.

Nothing of fedhet's own draws from these (see `fedhet.streams`). Somebody's Flower app does, on both sides: its server
has one stream for the run, its clients one for every message, named by client and turn. So no draw depends on who
else drew, nor on the process it was drawn in.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Context, Message

from fedhet.grids.worker import App
from fedhet.streams import number


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all three with this number, as `random.seed(seed)` and its like do; put them back afterwards."""
    python, array = random.getstate(), np.random.get_state()
    # of a device nothing is asked that has not been used: asking would set it up, and a process with it cannot fork
    ready = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if ready else ()
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % (1 << 32))
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


@dataclass(frozen=True)
class Seeded:
    """A client app that begins every message with generators of its own: of this seed and the message's name."""

    app: App
    seed: int

    def __call__(self, message: Message, context: Context) -> Message:
        with seeded(number(self.seed, f"message {message.metadata.message_id}")):
            return self.app(message, context)
