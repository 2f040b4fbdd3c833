"""Forward floating-point operations per sample, a multiply-add counted as 2: linear, convolution and attention layers.

Activations, normalisation, pooling and embeddings are left out; they are a small part of any of these networks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

COUNTED = nn.Linear | _ConvNd | nn.MultiheadAttention


@torch.no_grad()
def forward_flops(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Run one sample of zeros through and count. One dimension before an embedding is an integer sequence (length,)."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        nonlocal total
        if isinstance(layer, nn.MultiheadAttention):
            total += _attention(layer, inputs[0].shape[-2], inputs[1].shape[-2])
        elif isinstance(output, Tensor):
            total += 2 * _per_element(layer, inputs[0], output)

    # the output projection inside an attention layer is used without being called, so nothing is counted twice
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, COUNTED)]
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


def _per_element(layer: nn.Module, given: Tensor, output: Tensor) -> int:
    """Multiply-adds of a linear or convolution layer."""
    if isinstance(layer, _ConvTransposeNd):  # every input element meets the kernel
        return int(layer.out_channels // layer.groups * math.prod(layer.kernel_size) * given.numel())
    if isinstance(layer, _ConvNd):
        return int(layer.in_channels // layer.groups * math.prod(layer.kernel_size) * output.numel())
    assert isinstance(layer, nn.Linear)
    return int(layer.in_features * output.numel())


def _attention(layer: nn.MultiheadAttention, queries: int, keys: int) -> int:
    """Projections of queries, keys, values and the result, and the two products with the (queries, keys) scores."""
    width = int(layer.embed_dim)
    projections = 2 * queries * width * width + keys * width * int(layer.kdim + layer.vdim)
    return 2 * (projections + 2 * queries * keys * width)
