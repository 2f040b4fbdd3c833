"""Forward floating-point operations per sample, a multiply-add counted as 2: linear and convolution layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def forward_flops(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Run one sample through and count. Sequences are integer inputs of shape (length,)."""
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2 * layer.in_features * output.numel()
        elif isinstance(layer, nn.Conv2d):
            per_output = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
            total += 2 * per_output * output.numel()

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    training = module.training
    module.eval()
    try:
        sequence = len(input_shape) == 1 and any(isinstance(m, nn.Embedding) for m in module.modules())
        module(torch.zeros((1, *input_shape), dtype=torch.int64 if sequence else torch.float32))
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    return total
