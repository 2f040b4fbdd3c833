"""A PyTorch module as federated training sees it: flat parameters, gradients, and the state that does not travel.
Models to choose from are in `clients/models`."""

from typing import Any

from fedhet import former_names


def __getattr__(name: str) -> Any:
    return former_names.forwarded(__name__, name)
