"""The inner products that rules use: float64, for updates of any dtype."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedhet.bases.rule import UpdateMatrix
from fedhet.numerics import tree
from strategies.rules.geometry import distances_to, nearest, squared_distances

DENSE: Any = SimpleNamespace(gram=tree.gram, combine=lambda deltas, c, s: tree.weighted_sum(deltas, tree.scaled(c, s)))


def test_inner_products_of_close_float32_updates_keep_their_distances() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=100_003) + 1e-5 * rng.normal(size=(4, 100_003))).astype(np.float32)
    leaf = tree.Leaf((rows.shape[1],))
    schema = tree.Schema((("w", leaf),))
    gram = tree.gram([tree.FlatTree(schema, torch.from_numpy(r)) for r in rows])
    exact = rows.astype(np.float64)
    want = ((exact[:, None] - exact[None]) ** 2).sum(2)
    assert squared_distances(gram) == pytest.approx(want, rel=1e-4, abs=1e-9)


def test_plain_mappings_have_the_inner_products_of_flat_trees(make_updates: Callable[..., Any]) -> None:
    flats = [u.delta for u in make_updates(np.random.default_rng(1).normal(size=(5, 31)))]
    plain = [{k: v.clone() for k, v in t.items()} for t in flats]
    assert tree.gram(plain) == pytest.approx(tree.gram(flats), rel=1e-12)
    for bad, what in (({"a": plain[0]["a"]}, "names"), ({"a": torch.zeros(3), "b": torch.zeros(2)}, "size")):
        with pytest.raises(ValueError, match=what):
            tree.gram([plain[0], bad])


def test_mixtures_of_mixtures_are_one_mixture(make_updates: Callable[..., Any]) -> None:
    rng = np.random.default_rng(2)
    x, scales = rng.normal(size=(6, 9)), rng.uniform(0.1, 1.0, 6)
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(3, 4))
    rows = UpdateMatrix.of(make_updates(x, scales), DENSE).mix(first, np.ones(4)).mix(second, np.ones(3))
    want = second @ first @ (x * scales[:, None])
    assert rows.gram == pytest.approx(want @ want.T) and (rows.gram == rows.gram.T).all()
    assert len(rows) == 3 and rows.updates == ()
    answer = rows.sum(np.array([1.0, -2.0, 0.5]))
    assert np.concatenate([v.numpy() for v in answer.values()]) == pytest.approx(np.array([1.0, -2.0, 0.5]) @ want)
    tops = rows.reduce(SimpleNamespace(reduce=lambda block, weights: block.max(0).values))
    assert np.concatenate([v.numpy() for v in tops.values()]) == pytest.approx(want.max(0))


def test_half_precision_is_reduced_in_single(make_updates: Callable[..., Any]) -> None:
    from dataclasses import replace

    base = make_updates(np.zeros((2, 2)))
    updates = [replace(u, delta={"w": torch.full((3,), 1.0 + i, dtype=torch.bfloat16)}) for i, u in enumerate(base)]
    kinds = []

    def mean(block: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        kinds.append(block.dtype)
        return block.mean(0)

    got = UpdateMatrix.of(updates, DENSE).reduce(SimpleNamespace(reduce=mean))["w"]
    assert kinds == [torch.float32] and got.dtype == torch.bfloat16 and (got == 1.5).all()


def test_distances_and_neighbours_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(3)
    x, c = rng.normal(size=(7, 5)), rng.dirichlet(np.ones(7))
    gram = x @ x.T
    assert distances_to(gram, c) == pytest.approx(np.linalg.norm(x - c @ x, axis=1))
    near = nearest(gram, 3)
    assert (near[:, 0] == np.arange(7)).all()
    assert (near == np.argsort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, :3]).all()
    same_layout = np.zeros((4, 4))
    assert [list(r) for r in nearest(same_layout, 2)] == [[0, 1], [1, 0], [2, 0], [3, 0]]


def test_sums_in_pieces_have_the_bits_of_sums_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    schema = tree.Schema((("w", tree.Leaf((1003,))),))
    trees = [tree.FlatTree(schema, torch.randn(1003, generator=g)) for _ in range(7)]
    coefficients = [0.1, 0.3, 0.7, 1 / 3, 0.05, -0.9, 0.11]
    whole = tree.weighted_sum(trees, coefficients)["w"]
    for piece in (1, 7, 64, 1000):
        monkeypatch.setattr(tree, "PIECE", piece)
        assert torch.equal(tree.weighted_sum(trees, coefficients)["w"], whole)
