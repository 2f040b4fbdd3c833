"""A client does not train what exceeds its memory, and the result has the energy used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clients.work.loop import AbstractLocal
from clients.work.sgd import Sgd
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.model.flat_model import Model
from fedhet.numerics.wire_format import size
from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.protocols import Shard
from fedhet.runs.experiment import Experiment
from fedhet.testing.quadratic import QuadraticWorld
from fedhet.types import Job, Memory
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

WORLD = QuadraticWorld([1.0, 2.0, 3.0], [[0.0] * 50, [1.0] * 50, [2.0] * 50])
PAYLOAD = size(WORLD.model().schema)
NEED = 50 * 8 + 3 * PAYLOAD
"""Bytes: a float64 model of 50 parameters, what is sent, and twice what comes back."""


def run(folder: Path, fields: Sequence[dict[str, Any]], workers: int = 0) -> Any:
    fleet = Clients.from_profiles([Profile(sec_per_step=1.0, **f) for f in fields]).with_examples(WORLD.examples())
    method = Method(Sync(), Full(), Mean(), Sgd(lr=0.1), Fixed(steps=4))
    return Experiment(method, fleet, WORLD, Limits(versions=5), workers=workers).run(folder)


def test_a_client_trains_with_just_enough_memory_and_refuses_with_a_byte_less(tmp_path: Path) -> None:
    row = run(tmp_path, [{"memory_bytes": NEED}, {"memory_bytes": NEED - 1}, {}]).row
    assert row["updates"]["failed"] == {"memory": 5}
    assert row["updates"]["accepted"] == 10


def test_a_model_too_large_for_every_client_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model takes 400 bytes, but no client has a memory_bytes above 300"):
        run(tmp_path, [{"memory_bytes": 300}, {"memory_bytes": 200}, {"memory_bytes": 100}])


def test_energy_is_that_of_the_steps_trained_and_batteries_are_counted(tmp_path: Path) -> None:
    fields = [
        {"energy_joule_per_step": 0.5, "battery_joule": 9.0},
        {"energy_joule_per_step": 2.0, "battery_joule": 40.0, "memory_bytes": NEED},
        {"energy_joule_per_step": 3.0, "battery_joule": 1.0, "memory_bytes": NEED - 1},
    ]
    row = run(tmp_path, fields).row
    assert row["energy_joules"] == 5 * 4 * 0.5 + 5 * 4 * 2.0
    assert row["batteries_exhausted"] == 1


def test_clients_that_declare_no_energy_are_left_out_of_the_energy_used(tmp_path: Path) -> None:
    row = run(tmp_path, [{}, {}, {}]).row
    assert row["energy_joules"] is None and row["batteries_exhausted"] is None


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    fleet = Clients.from_profiles([Profile(sec_per_step=1.0, energy_joule_per_step=0.5)] * 3)
    method = Method(Sync(), Full(), Mean(), Breaking(lr=0.1), Fixed(steps=4))
    limits, clients = Limits(versions=6), fleet.with_examples(WORLD.examples())
    broken = Experiment(method, clients, WORLD, limits, checkpoint_every=1e-9)
    with pytest.raises(KeyboardInterrupt):
        broken.run(tmp_path)
    sound = Method(Sync(), Full(), Mean(), Sgd(lr=0.1), Fixed(steps=4))
    row = Experiment(sound, clients, WORLD, limits).run(tmp_path, resume=True).row
    assert row["energy_joules"] == 6 * 3 * 4 * 0.5


@dataclass(frozen=True)
class Breaking(AbstractLocal):
    """Plain steps, until somebody interrupts the third round."""

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        if job.version == 3 and job.client == 2:
            raise KeyboardInterrupt
        return self.steps(model, data, job)
