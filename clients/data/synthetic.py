"""Gaussian clusters, one per class: data of any size and shape, for benchmarks and very large fleets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clients.data.dataset import DataError, Dataset, cached, classes_in_targets
from fedhet.numerics.rng import stream


@dataclass(frozen=True)
class Synthetic:
    """Gaussian clusters, one per class: synthetic data of any size.

    samples: training samples; a fifth as many are for testing. shape: of an input. spread: distance of class centres.
    """

    samples: int = 6000
    shape: tuple[int, ...] = (1, 28, 28)
    classes: int = 10
    spread: float = 0.3
    seed: int = 0
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 5 or self.classes < 2:
            raise DataError(f"samples={self.samples}, classes={self.classes}: at least 5 and 2")
        if not self.shape or any(n < 1 for n in self.shape):
            raise DataError(f"shape={list(self.shape)}: positive numbers, such as [1, 28, 28]")

    def load(self) -> Dataset:
        key = {"samples": self.samples, "shape": list(self.shape), "classes": self.classes}
        key |= {"spread": self.spread, "seed": self.seed}
        return cached("synthetic", classes_in_targets, key, self._make, self.cache)

    def _make(self) -> Mapping[str, np.ndarray]:
        rng = stream(self.seed, "synthetic")
        size = int(np.prod(self.shape))
        centres = rng.standard_normal((self.classes, size), dtype=np.float32) * self.spread
        out = {}
        for split, count in (("train", self.samples), ("test", max(self.classes, self.samples // 5))):
            y = rng.permutation(np.arange(count) % self.classes)
            x = rng.standard_normal((count, size), dtype=np.float32) + centres[y]
            out[f"x_{split}"], out[f"y_{split}"] = x.reshape(count, *self.shape), y.astype(np.int64)
        return out
