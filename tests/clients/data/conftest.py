from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from clients.data.dataset import Dataset

Make = Callable[..., Dataset]


@pytest.fixture(scope="session")
def make_dataset() -> Make:
    """A data set with these training labels; inputs are the sample numbers, so that samples can be told apart."""

    def make(labels: Sequence[int] | np.ndarray, test: Sequence[int] | None = None, **owners: np.ndarray) -> Dataset:
        y = torch.as_tensor(np.asarray(labels, dtype=np.int64))
        v = torch.as_tensor(np.asarray(labels if test is None else test, dtype=np.int64))
        classes = int(max(y.max(), v.max())) + 1
        x, u = (torch.arange(len(t), dtype=torch.float32)[:, None] for t in (y, v))
        return Dataset("made", classes, x, y, u, v, "none", **owners)

    return make
