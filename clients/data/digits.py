"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels that are part of the library. Needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from clients.data.dataset import Dataset, cached, classes_in_targets
from fedhet.numerics.rng import stream


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: images (n, 1, 8, 8) in [0, 1], 1,437 for training, 360 for testing.

    The test set is a fixed fifth of every class.
    """

    cache: str | None = None

    def load(self) -> Dataset:
        # the library itself is slow to import and not needed once the images lie in the cache
        return cached("digits", classes_in_targets, {"sklearn": version("scikit-learn")}, _decode, self.cache)


def _decode() -> Mapping[str, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = stream(0, "digits split").permutation(len(labels))
    # every fifth of each class goes to the test set: equal class shares in both
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[order[labels[order] == label][::5]] = True
    test[order[test[order]][360:]] = False
    train_at, test_at = order[~test[order]], order[test[order]]
    return {
        "x_train": images[train_at], "y_train": labels[train_at].astype(np.int64),
        "x_test": images[test_at], "y_test": labels[test_at].astype(np.int64),
    }  # fmt: skip
