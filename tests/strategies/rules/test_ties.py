"""Numbers equal in exact arithmetic: the same result for any order of summation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from strategies.rules.bulyan import choose
from strategies.rules.caf import Caf
from strategies.rules.centred_clipping import CentredClipping
from strategies.rules.flag import Flag
from strategies.rules.geometry import nearest, squared_distances
from strategies.rules.krum import Krum, MultiKrum
from strategies.rules.mda import MinimumDiameter
from strategies.rules.monna import Monna
from strategies.rules.order import mean_around, middle
from strategies.rules.smea import Smea
from strategies.rules.ties import LEVEL, lowest, ranks

RNG = np.random.default_rng(0)
TIED = {
    "all equally far": 3.0 * np.eye(9),
    "copies": np.repeat(RNG.normal(size=(3, 14)), 3, axis=0),
    "points of a grid": np.array([[x, y, 1.0] for x in range(3) for y in range(3)]),
    "on a circle": np.stack([np.cos(np.arange(9) * 2 * np.pi / 9), np.sin(np.arange(9) * 2 * np.pi / 9)], axis=1),
    "mirrored": np.concatenate([v := RNG.normal(size=(4, 14)), -v, np.zeros((1, 14))]),
    "mixtures": np.array([m @ RNG.normal(size=(4, 14)) for m in [np.array([1.0, 1.0, 1.0, 0.0]) / 3] * 9])
    + np.repeat(RNG.normal(size=(3, 14)), 3, axis=0),
}


def grams(rows: np.ndarray, count: int = 30) -> list[np.ndarray]:
    """The Gram matrix as other orders of summation would round it."""
    gram = rows @ rows.T
    sizes = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    found = []
    for seed in range(count):
        noise = np.random.default_rng(seed).normal(size=gram.shape)
        found.append(gram + 1e-15 * sizes * (noise + noise.T))
    return found


@pytest.mark.parametrize("rows", TIED.values(), ids=TIED.keys())
@pytest.mark.parametrize(
    "rule",
    [Krum(1), Krum(1, 1), MultiKrum(1), MultiKrum(2), MinimumDiameter(2), Smea(2), Monna(0, 2), Caf(2), Flag(),
     Flag(lam=0.5), CentredClipping(start="medoid")],
    ids=repr,
)  # fmt: skip
def test_a_rule_chooses_the_same_however_sums_are_rounded(rule: Any, rows: np.ndarray, make_updates: Any) -> None:
    updates = make_updates(rows)
    answers = [rule.coefficients(gram, np.ones(9), updates, None) @ rows for gram in grams(rows)]
    for answer in answers[1:]:
        assert answer == pytest.approx(answers[0], rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("rows", TIED.values(), ids=TIED.keys())
def test_neighbours_and_repeated_choices_are_the_same_however_sums_are_rounded(rows: np.ndarray) -> None:
    several = grams(rows)
    assert len({nearest(gram, 5).tobytes() for gram in several}) == 1
    assert len({tuple(choose(gram, 1)) for gram in several}) == 1


@pytest.mark.parametrize("seed", [1899, *range(40)])
def test_mixtures_of_the_same_neighbours_tie(seed: int, make_updates: Any) -> None:
    """Mixing makes rows that coincide, or differ by one neighbour: the rule behind it meets ties all the time."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=14) + 0.5 * rng.normal(size=(9, 14))
    rows[1:3] += 4.0 * rng.normal(size=(2, 14))
    mixed = np.array([rows[near].mean(0) for near in nearest(rows @ rows.T, 7)])
    answers = [MultiKrum(1).coefficients(gram, np.ones(9), make_updates(mixed), None) @ mixed for gram in grams(mixed)]
    assert all(answer == pytest.approx(answers[0], rel=1e-9) for answer in answers)


def test_numbers_that_are_level_share_a_place_and_the_first_goes_first() -> None:
    values = np.array([3.0, 1.0 + 1e-15, 2.0, 1.0, 3.0 - 1e-14, 1.0 + 1e-9])
    assert ranks(values, np.abs(values)).tolist() == [3, 0, 2, 0, 3, 1]
    assert lowest(values, np.abs(values)) == 1
    assert ranks(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1e13, 1.0])).tolist() == [0, 0, 0], "as coarse as its terms"
    assert ranks(np.array([[2.0, 1.0], [1.0, 1.0]]), np.ones((2, 2))).tolist() == [[1, 0], [0, 0]]


def test_what_rounding_leaves_of_a_distance_is_none() -> None:
    rows = np.repeat(1e3 * RNG.normal(size=(1, 50)), 4, axis=0)
    rows[3] += 1e-2
    for gram in grams(rows):
        far = squared_distances(gram) > 0.0
        assert not far[:3, :3].any() and far[3, :3].all()
    assert LEVEL < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_two_values_equally_far_from_the_centre_the_smaller_is_kept_whatever_rounding_says(dtype: Any) -> None:
    rows = torch.tensor([[0.1], [0.3], [0.5], [0.7]], dtype=dtype).repeat(1, 200)
    noise = torch.randint(-4, 5, rows.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    nudged = rows + noise * torch.finfo(dtype).eps * 0.1
    assert torch.allclose(mean_around(nudged, middle(nudged), 3), torch.tensor(0.3, dtype=dtype), atol=1e-6)
    assert torch.allclose(mean_around(nudged, middle(nudged), 1), torch.tensor(0.3, dtype=dtype), atol=1e-6)
    far = torch.tensor([[-1e30], [0.3], [0.5], [1e20]], dtype=dtype)
    assert mean_around(far, middle(far), 2).item() == pytest.approx(0.4, abs=1e-6), (
        "one far off does not level the rest"
    )
