"""Configuration: options under conf/ and overrides, composed by Hydra, checked, listed, cited and built into objects.
What the objects do belongs to `strategies`, `clients` and the engine."""

from typing import Any

from fedhet import former_names


def __getattr__(name: str) -> Any:
    return former_names.forwarded(__name__, name)
