"""Rules on plain arrays: rows in, one row out, in float64 unless the rows are float32."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.types import Budget, Job, Update

DENSE: Any = SimpleNamespace(gram=tree.gram, combine=lambda deltas, c, s: tree.weighted_sum(deltas, tree.scaled(c, s)))


def updates_of(rows: np.ndarray, scales: Any = None, weights: Any = None) -> list[Update]:
    n, d = rows.shape
    scales = np.ones(n) if scales is None else scales
    weights = np.ones(n) if weights is None else weights
    flats = torch.from_numpy(np.ascontiguousarray(rows))
    schema = Schema((("a", Leaf((d - d // 2,), flats.dtype)), ("b", Leaf((d // 2,), flats.dtype))))
    return [
        Update(Job(i, i, 0, 0, Budget(), 0.0), FlatTree(schema, flats[i]), float(weights[i]), float(scales[i]))
        for i in range(n)
    ]


@pytest.fixture(scope="session")
def combine(fake_view: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """combine(rule, rows (n, d), scales=None, weights=None) -> (d,): the rule's answer in the dense space."""

    def call(rule: Any, rows: np.ndarray, scales: Any = None, weights: Any = None) -> np.ndarray:
        result = rule(updates_of(rows, scales, weights), DENSE, fake_view())
        return np.concatenate([leaf.numpy() for leaf in result.values()])

    return call


@pytest.fixture(scope="session")
def make_updates() -> Callable[..., list[Update]]:
    return updates_of


@pytest.fixture
def cloud() -> Callable[..., np.ndarray]:
    """cloud(n, d, wrong=0, far=20.0, seed=0): n rows around a common mean; the first `wrong` lie far away."""

    def make(n: int, d: int, wrong: int = 0, far: float = 20.0, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=d) + 0.5 * rng.normal(size=(n, d))
        rows[:wrong] = far * rng.normal(size=(wrong, d))
        return rows

    return make
