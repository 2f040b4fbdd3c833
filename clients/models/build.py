"""Build a Model with reproducible initial parameters from a factory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedhet.model.flat_model import Model
from fedhet.numerics.rng import seeded, stream


def build(
    factory: Callable[..., nn.Module],
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    sample: Tensor | None = None,
) -> Model:
    """Call `factory(input_shape=..., classes=...)` under a random stream of its own; global streams are restored.

    Lazy layers get their shapes and first values from `sample`, a batch of inputs. Raises ValueError if the factory
    makes no module, or one that `Model` refuses.
    """
    with seeded(int(stream(seed, "model").integers(1 << 62))):
        module = factory(input_shape=input_shape, classes=classes)
        if not isinstance(module, nn.Module):
            raise ValueError(f"the model factory returned {type(module).__name__}, not an nn.Module")
        if sample is not None and any(is_lazy(p) for p in (*module.parameters(), *module.buffers())):
            _materialise(module, sample)
    return Model(module)


@torch.no_grad()
def _materialise(module: nn.Module, sample: Tensor) -> None:
    training = module.training
    module.eval()  # a sample that only gives shapes must not enter batch statistics or draw dropout
    module(sample)
    module.train(training)
