"""Parameters with which two schedules are equal: the same weights, bit for bit, through the full engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.work.sgd import Sgd
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.population.roster import Clients
from fedhet.runs.experiment import Experiment
from fedhet.testing.quadratic import QuadraticWorld
from strategies.budgets.fixed import Fixed
from strategies.optimizers.sgd import Sgd as Step
from strategies.rules.mean import Mean
from strategies.schedules.fedat import FedAT
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedcompass import FedCompass
from strategies.schedules.fedfix import FedFix
from strategies.schedules.sync import Sync
from strategies.schedules.time_window import TimeWindow
from strategies.spaces.full import Full
from strategies.staleness.discount import Polynomial
from strategies.staleness.importance import Importance

COUNT, STEPS, VERSIONS = 5, 4, 6
RNG = np.random.default_rng(0)
WORLD = QuadraticWorld(RNG.uniform(0.3, 1.0, COUNT), RNG.normal(size=(COUNT, 7)), RNG.integers(5, 40, COUNT).tolist())
SLOWEST = 2.0
"""Seconds of a task of the slowest client."""


def weights(schedule: Any, speeds: Any, folder: Path, *staleness: Any, alpha: float = 1.0) -> str:
    """The digest of the model after `VERSIONS` combinations; updates are shares of the population."""
    seconds = np.asarray(speeds) * SLOWEST / STEPS
    clients = Clients.from_columns(COUNT, {"sec_per_step": seconds}).with_examples(WORLD.examples())
    method = Method(
        schedule, Full(), Mean(over="population"), Sgd(lr=0.1), Fixed(steps=STEPS), (Step(alpha),), staleness
    )
    row = Experiment(method, clients, WORLD, Limits(versions=VERSIONS)).run(folder).row
    assert row["versions"] == VERSIONS and row["updates"]["accepted"] == VERSIONS * COUNT
    return str(row["weights_sha256"])


EQUAL = [1.0] * COUNT
UNEQUAL = [1.0, 0.45, 0.31, 0.77, 0.62]


SYNCHRONOUS: dict[str, Callable[[], Any]] = {
    "fedcompass": lambda: FedCompass(2, STEPS, STEPS, latency_factor=1.0, initial_mode="group"),
    "fedcompass, strict": lambda: FedCompass(2, STEPS, STEPS, 1.5, join_slack=1.0, initial_mode="group"),
    "fedbuff": lambda: FedBuff(size=COUNT),
    "fedat": lambda: FedAT(tiers=1),
    "time_window": lambda: TimeWindow(window_seconds=100.0, goal=COUNT),
    "fedfix": lambda: FedFix(SLOWEST),
}


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize("alpha", [1.0, 0.9])
def test_equal_clients_make_every_schedule_synchronous(name: str, alpha: float, tmp_path: Path) -> None:
    reference = weights(Sync(), EQUAL, tmp_path / "sync", alpha=alpha)
    layer = Importance("fedfix", window_seconds=SLOWEST) if name == "fedfix" else Polynomial()
    assert weights(SYNCHRONOUS[name](), EQUAL, tmp_path / "other", layer, alpha=alpha) == reference


@pytest.mark.parametrize("window", [SLOWEST, 3.1 * SLOWEST])
def test_windows_as_long_as_the_slowest_task_are_rounds_with_their_weights(window: float, tmp_path: Path) -> None:
    reference = weights(Sync(), UNEQUAL, tmp_path / "sync")
    layer = Importance("fedfix", window_seconds=window)
    assert weights(FedFix(window), UNEQUAL, tmp_path / "fedfix", layer) == reference
    assert weights(FedFix(window), UNEQUAL, tmp_path / "plain") == reference
