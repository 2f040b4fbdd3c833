"""Malformed updates never reach a rule, and honest clients continue without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clients.attacks.malformed import Malformed
from clients.work.sgd import Sgd
from fedhet.config import composition, factory
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.runs.experiment import Experiment
from fedhet.runs.result import Result
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from strategies.budgets.fixed import Fixed
from strategies.rules.median import Median
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

CODES = {"shape": "shape", "dtype": "dtype", "names": "names", "size": "shape"}


def run(folder: Path, optima: list[float], attack: Malformed | None = None) -> Result:
    world = QuadraticWorld([1.0] * len(optima), optima)
    work: Any = Sgd(lr=0.1)
    layers = (attack,) if attack else ()
    work = attack(work) if attack else work
    method = Method(Sync(), Full(), Median(), work, Fixed(steps=2), codec=layers, name="t")
    return Experiment(method, equal_clients(world), world, Limits(versions=3)).run(folder)


@pytest.mark.parametrize("kind", CODES)
def test_the_gate_names_what_is_wrong_and_the_rest_is_as_without_the_attacker(kind: str, tmp_path: Path) -> None:
    attacked = run(tmp_path / "attacked", [0.0, 7.0, 2.0, 5.0], Malformed(clients=[1], kind=kind))
    clean = run(tmp_path / "clean", [0.0, 2.0, 5.0])
    assert attacked.row["updates"]["rejected"] == {CODES[kind]: 3}
    assert attacked.row["weights_sha256"] == clean.row["weights_sha256"]


def test_chosen_as_an_attack_it_stands_behind_every_codec() -> None:
    method = factory.method(composition.resolved(composition.compose(["attack=wrong_shape", "attack.kind=dtype"])))
    assert isinstance(method.codec[-1], Malformed) and method.codec[-1].kind == "dtype"
    assert method.work.attack is method.codec[-1]  # type: ignore[attr-defined]


def test_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match="kind='colour'"):
        Malformed(clients=[1], kind="colour")
