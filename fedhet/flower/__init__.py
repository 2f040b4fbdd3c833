"""The interface to Flower: messages, the event loop over a Grid, client state, and the few private names that we use.
Apps that Flower starts are in `deployment`. `fedhet.flower.MethodStrategy` is a method as a Flower Strategy."""

from typing import Any

from fedhet import former_names


def __getattr__(name: str) -> Any:
    return former_names.forwarded(__name__, name)
