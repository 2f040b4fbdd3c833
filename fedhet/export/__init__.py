"""A finished run's model for use elsewhere: complete weights, a peft adapter, a model card.
Reading run folders belongs to `runs`."""

from typing import Any

from fedhet import former_names


def __getattr__(name: str) -> Any:
    return former_names.forwarded(__name__, name)
