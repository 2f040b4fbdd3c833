"""From a factory to a Model with reproducible initial parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fedhet.model import Model
from fedhet.streams import stream


def build(factory: Callable[..., nn.Module], input_shape: tuple[int, ...], classes: int, seed: int) -> Model:
    """`factory(input_shape=..., classes=...)` under a random stream of its own; the caller's torch stream is untouched.

    Raises ValueError if the factory makes no module or one without trainable parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, "model").integers(1 << 62)))
        module = factory(input_shape=input_shape, classes=classes)
    if not isinstance(module, nn.Module):
        raise ValueError(f"the model factory returned {type(module).__name__}, not an nn.Module")
    return Model(module)
