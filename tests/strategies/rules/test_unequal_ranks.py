"""Rules on low-rank updates of unequal rank equal those on the full matrices, which are not computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedhet.engine.method import Method, Misfit
from fedhet.types import Budget, Job, Tree, Update
from strategies.budgets.fixed import Fixed
from strategies.rules.arc import Arc
from strategies.rules.bucketing import Bucketing
from strategies.rules.caf import Caf
from strategies.rules.centred_clipping import CentredClipping
from strategies.rules.chain import Chain
from strategies.rules.clipping import Clipping
from strategies.rules.flag import Flag
from strategies.rules.geometric_median import GeometricMedian
from strategies.rules.krum import Krum, MultiKrum
from strategies.rules.mda import MinimumDiameter
from strategies.rules.mean import Mean
from strategies.rules.monna import Monna
from strategies.rules.nnm import Nnm
from strategies.rules.smea import Smea
from strategies.rules.trimmed_mean import TrimmedMean
from strategies.rules.unit_mean import UnitMean
from strategies.schedules.sync import Sync
from strategies.spaces.stacked_lora import StackedLora

Combine = Callable[..., np.ndarray]
SPACE = StackedLora()
RANKS = (1, 2, 3, 1, 2, 4, 2, 1, 3)
LAYERS = {"in": (5, 6), "out": (3, 5)}
RULES: dict[str, Any] = {
    "mean": Mean(),
    "mean of unit vectors": UnitMean(),
    "krum": Krum(f=2),
    "multi-krum": MultiKrum(f=2),
    "mda": MinimumDiameter(f=2),
    "smea": Smea(f=2),
    "monna": Monna(pivot=4, f=2),
    "caf": Caf(f=2),
    "centred clipping": CentredClipping(),
    "geometric median": GeometricMedian(),
    "flag": Flag(iterations=1),
    "flag, pairs": Flag(iterations=1, lam=3.0),
    "clipping, mean": Chain([Clipping(2.0)], Mean(uniform=True)),
    "arc, mean": Chain([Arc(2)], Mean(uniform=True)),
    "nnm, krum": Chain([Nnm(2)], Krum(f=2)),
    "bucketing, geometric median": Chain([Bucketing(2)], GeometricMedian()),
    "arc, nnm, geometric median": Chain([Arc(2), Nnm(2)], GeometricMedian()),
    "arc, nnm, flag": Chain([Arc(2), Nnm(2)], Flag(iterations=1)),
}


def updates() -> list[Update]:
    """Products around common ones, two of them far away, discounted by age, and one plain vector beside them."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    common = {name: (normal(d, 1), normal(1, k)) for name, (d, k) in LAYERS.items()}
    made = []
    for i, rank in enumerate(RANKS):
        delta: dict[str, torch.Tensor] = {}
        for name, (d, k) in LAYERS.items():
            far = 5.0 if i in (2, 6) else 0.4
            left = torch.cat([common[name][0], far * normal(d, rank - 1)], 1) + 0.1 * normal(d, rank)
            right = torch.cat([common[name][1], normal(rank - 1, k)])
            delta |= {f"{name}.lora_A": right, f"{name}.lora_B": left}
        delta["whole/head.bias"] = normal(4)
        made.append(Update(Job(i, i, 0, 0, Budget(rank=rank), 0.0), delta, 1.0 + i, 0.4 + 0.07 * i))
    return made


def dense(delta: Tree) -> np.ndarray:
    products = [(delta[f"{n}.lora_B"] @ delta[f"{n}.lora_A"]).flatten() for n in LAYERS]
    return torch.cat([*products, delta["whole/head.bias"]]).numpy()


@pytest.mark.parametrize("name", RULES)
def test_a_linear_rule_on_factors_is_the_rule_on_their_products(combine: Combine, fake_view: Any, name: str) -> None:
    given = updates()
    rows = np.stack([dense(u.delta) for u in given])
    scales, weights = np.array([u.scale for u in given]), np.array([u.weight for u in given])
    got = RULES[name](given, SPACE, fake_view())
    assert dense(got) == pytest.approx(combine(RULES[name], rows, scales, weights), rel=1e-6, abs=1e-8)
    assert got["in.lora_A"].shape[0] == sum(RANKS), "stacked, not multiplied out"


def test_sums_lie_in_one_piece_of_memory_unless_their_dtypes_differ() -> None:
    deltas = [dict(u.delta) for u in updates()]
    mixed = [{n: leaf.float() if n.startswith("in.") else leaf for n, leaf in delta.items()} for delta in deltas]
    shares = [1.0 / len(deltas)] * len(deltas)
    together, apart = SPACE.combine(deltas, shares), SPACE.combine(mixed, shares)
    names = [n for n in together if ".lora_" in n]
    assert len({together[n].untyped_storage().data_ptr() for n in names}) == 1
    for name in names:
        assert apart[name].dtype == mixed[0][name].dtype
        assert torch.allclose(apart[name].double(), together[name], rtol=1e-6)


def test_a_rule_of_single_coordinates_does_not_fit() -> None:
    with pytest.raises(Misfit, match="coordinates"):
        Method(Sync(), SPACE, TrimmedMean(), Anything(), Fixed(steps=1))  # type: ignore[arg-type]


class Anything:
    needs: frozenset[str] = frozenset()
