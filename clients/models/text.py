"""A small causal transformer over characters, for next-character prediction.

Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, decoder only, normalisation first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CharTransformer(nn.Module):
    """Pre-norm decoder; input (n, length) int64, output logits (n, length, classes)."""

    mask: Tensor

    def __init__(self, length: int, classes: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        self.register_buffer("mask", torch.triu(torch.ones(length, length, dtype=torch.bool), 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        h = self.embed(x) + self.position[:length]
        for block in self.blocks:
            h = block(h, src_mask=self.mask[:length, :length])
        out: Tensor = self.head(self.norm(h))
        return out


def char_transformer(
    *, input_shape: tuple[int, ...], classes: int, width: int = 64, heads: int = 4, depth: int = 2
) -> nn.Module:
    """A causal character transformer with torch's own attention layers."""
    return CharTransformer(length_of(input_shape, width, heads, depth), classes, width, heads, depth)


def length_of(input_shape: tuple[int, ...], width: int, heads: int, depth: int) -> int:
    """The length of a character model's sequences. Raises ValueError for other data, or sizes that make no model."""
    if len(input_shape) != 1:
        raise ValueError(f"this model takes sequences (length,), the data have {tuple(input_shape)}")
    if width < 1 or heads < 1 or width % heads:
        raise ValueError(f"width={width} must be a positive multiple of heads={heads}")
    if depth < 1:
        raise ValueError(f"depth={depth} blocks: at least 1")
    return input_shape[0]
