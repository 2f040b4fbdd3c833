"""Residual image classifiers with GroupNorm in place of BatchNorm, so that there are no batch statistics to average.

He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385; Wu and He, "Group Normalization",
arXiv:1803.08494.
"""

from __future__ import annotations

from torch import Tensor, nn

from clients.models.vision import image


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(groups, after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.GroupNorm(groups, after),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(groups, after))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.relu(self.path(x) + self.shortcut(x))
        return out


def resnet8(*, input_shape: tuple[int, ...], classes: int, width: int = 16, groups: int = 2) -> nn.Module:
    """ResNet-8 with GroupNorm: three stages of one block, widths 16, 32, 64."""
    return _resnet(input_shape, classes, [(width, 1, 1), (2 * width, 2, 1), (4 * width, 2, 1)], groups)


def resnet18(*, input_shape: tuple[int, ...], classes: int, width: int = 64, groups: int = 8) -> nn.Module:
    """ResNet-18 with GroupNorm: four stages of two blocks, widths 64 to 512, small-image stem."""
    stages = [(width, 1, 2), (2 * width, 2, 2), (4 * width, 2, 2), (8 * width, 2, 2)]
    return _resnet(input_shape, classes, stages, groups)


def _resnet(input_shape: tuple[int, ...], classes: int, stages: list[tuple[int, int, int]], groups: int) -> nn.Module:
    channels, width = image(input_shape)[0], stages[0][0]
    if width < 1 or groups < 1 or width % groups:
        raise ValueError(f"width={width} must be a positive multiple of groups={groups}")
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.GroupNorm(groups, width), nn.ReLU()]
    for after, stride, blocks in stages:
        for number in range(blocks):
            layers.append(Block(width, after, stride if number == 0 else 1, groups))
            width = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
