"""A causal character transformer with separate linear layers q_proj, k_proj, v_proj, o_proj, up and down for adapters.

Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, decoder only, normalisation first. torch's own attention
layer reads its projections without calling them and can carry no adapter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clients.models.text import length_of


class Attention(nn.Module):
    """Causal self-attention, (n, length, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(n, length, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(n, length, width))
        return out


class Block(nn.Module):
    """Attention and a perceptron, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        out: Tensor = x + self.down(nn.functional.gelu(self.up(self.between(x))))
        return out


class CharDecoder(nn.Module):
    """Input (n, length) int64, output logits (n, length, classes)."""

    def __init__(self, length: int, classes: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.head(self.norm(h))
        return out


def char_decoder(
    *, input_shape: tuple[int, ...], classes: int, width: int = 64, heads: int = 4, depth: int = 2
) -> nn.Module:
    """A causal character transformer whose projections can have LoRA adapters."""
    return CharDecoder(length_of(input_shape, width, heads, depth), classes, width, heads, depth)
