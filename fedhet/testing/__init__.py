"""For tests of plug-ins: a world with a known answer and helpers around it.
Tests themselves are under tests/."""

from typing import Any

from fedhet import former_names


def __getattr__(name: str) -> Any:
    return former_names.forwarded(__name__, name)
