"""Omniscient attackers in simulation: only their updates are replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.rules.colluding import Colluding
from strategies.rules.krum import Krum
from strategies.rules.mean import Mean
from strategies.rules.median import Median

Combine = Callable[..., np.ndarray]


@dataclass
class Fixed:
    """Attackers 0 and 3 send ten times the negative honest mean, and keep what they saw."""

    who: tuple[int, ...] = (0, 3)
    seen: list[Any] = field(default_factory=list)

    def __contains__(self, client: object) -> bool:
        return client in self.who

    def vector(self, honest: Tensor, count: int, defence: Callable[[Tensor], Tensor]) -> Tensor:
        vector = -10.0 * honest.mean(0)
        self.seen = [honest, count, defence(vector)]
        return vector


def test_attackers_replace_their_own_updates_and_know_the_answer(combine: Combine) -> None:
    rows, scales = np.random.default_rng(0).normal(size=(6, 8)), np.array([0.5, 1.0, 0.5, 0.25, 1.0, 1.0])
    honest = (rows * scales[:, None])[[1, 2, 4, 5]]
    for rule in (Mean(uniform=True), Median(), Krum(f=1)):
        attack = Fixed()
        got = combine(Colluding(rule, attack), rows, scales)
        sent = rows * scales[:, None]
        sent[[0, 3]] = -10.0 * honest.mean(0)
        assert got == pytest.approx(combine(rule, sent))
        assert attack.seen[0].numpy() == pytest.approx(honest)
        assert attack.seen[1] == 2
        assert attack.seen[2].numpy() == pytest.approx(got)


@pytest.mark.parametrize("who", [(), (9,), (0, 1, 2, 3, 4, 5)])
def test_without_attackers_or_without_honest_clients_it_is_the_rule_alone(combine: Combine, who: Any) -> None:
    rows = np.random.default_rng(1).normal(size=(6, 8))
    assert (combine(Colluding(Median(), Fixed(who)), rows) == combine(Median(), rows)).all()


def test_updates_are_left_as_they_are(combine: Combine) -> None:
    rows = np.random.default_rng(2).normal(size=(6, 8))
    before = rows.copy()
    combine(Colluding(Mean(), Fixed()), rows)
    assert (rows == before).all()


def test_seeing_updates_needs_coordinates_and_one_dtype(make_updates: Any, fake_view: Any) -> None:
    from dataclasses import replace

    assert Colluding(Krum(), Fixed()).needs == {"each", "coordinates", "distances"}
    mixed = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.float64)}
    updates = [replace(u, delta=mixed) for u in make_updates(np.zeros((6, 4)))]
    with pytest.raises(ValueError, match="share one dtype"):
        Colluding(Median(), Fixed())(updates, None, fake_view())  # type: ignore[arg-type]
