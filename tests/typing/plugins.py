"""A part of every axis of a method, as a user's own package has it: `mypy --strict` has nothing to say about this file.

Each is handed to `Method` as it is, so that its protocol is checked; `assert_type` holds what the public names give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, assert_type

import numpy as np
from torch import Tensor

import fedhet
from clients.work.loop import AbstractLocal
from fedhet import Experiment, Limits, Method, Result
from fedhet.bases import AbstractCoordinateRule, AbstractDense, AbstractLinearRule, AbstractTransform
from fedhet.model.flat_model import Model
from fedhet.numerics.tree import FlatTree
from fedhet.population.roster import Clients
from fedhet.protocols import BudgetPolicy, Observation, Rule, Schedule, Shard, Space, Transform, View, Work
from fedhet.types import (
    Aggregate,
    Arrived,
    Assign,
    Budget,
    ClientId,
    Command,
    Event,
    Failed,
    Job,
    JobId,
    Memory,
    Started,
    Tree,
    Update,
)
from fedhet.world import World


@dataclass
class Pairs:
    """A schedule: two answers make a version."""

    waiting: list[JobId] = field(default_factory=list)

    def react(self, event: Event, view: View) -> Iterator[Command]:
        match event:
            case Started():
                yield from (Assign(client) for client in view.idle)
            case Arrived(job):
                assert_type(job, Job)
                self.waiting.append(job.id)
                if len(self.waiting) == 2:
                    jobs, self.waiting = tuple(self.waiting), []
                    yield Aggregate(jobs)
                yield Assign(job.client, steps=3)
            case Failed(job, reason):
                assert_type(reason, str)
                yield Assign(job.client)


@dataclass(frozen=True)
class Halving:
    """A budget: fewer steps for those who were slow."""

    steps: int = 8

    def __call__(self, client: ClientId, view: View) -> Budget:
        seen = view.observed(client)
        assert_type(seen, Observation)
        assert_type(seen.seconds_per_step, float | None)
        return Budget(steps=self.steps if (seen.seconds_per_step or 0.0) < 1.0 else self.steps // 2)


class Everything(AbstractDense):
    """A space: all parameters, as one vector."""

    def begin(self, model: Model) -> Tree:
        return FlatTree(model.schema, model.flat.clone())

    def install(self, model: Model, payload: Tree, job: Job) -> None:
        for name, leaf in model.tree().items():
            leaf.copy_(payload[name])

    def extract(self, model: Model, payload: Tree) -> Tree:
        return {name: leaf - payload[name] for name, leaf in model.tree().items()}

    def restore(self, model: Model, state: Tree) -> None:
        for name, leaf in model.tree().items():
            leaf.copy_(state[name])


@dataclass(frozen=True)
class Shortest(AbstractLinearRule):
    """A rule on inner products: the update of least length."""

    def coefficients(self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View) -> np.ndarray:
        chosen: np.ndarray = np.zeros(len(gram))
        chosen[int(np.argmin(np.diag(gram)))] = 1.0
        return chosen


@dataclass(frozen=True)
class Largest(AbstractCoordinateRule):
    """A rule on single coordinates."""

    def reduce(self, block: Tensor, weights: Tensor) -> Tensor:
        return block.amax(0)


@dataclass(frozen=True)
class First:
    """A rule with no base."""

    needs: ClassVar[frozenset[str]] = frozenset({"each"})

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        assert_type(view.cohort, Sequence[Job])
        return space.combine([u.delta for u in updates[:1]], [1.0], [updates[0].scale])


@dataclass(frozen=True)
class Fading(AbstractTransform):
    """A transform: an update is worth less with every version it is late."""

    factor: float = 0.9

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        assert_type(view.base(update.job.version), Tree)
        return replace(update, scale=update.scale * self.factor ** (view.version - update.job.version))


@dataclass(frozen=True)
class Signs(AbstractLocal):
    """A work on the loop that all local training shares."""

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        def sign(gradient: Tensor, params: Tensor) -> None:
            gradient.sign_()

        return self.steps(model, data, job, sign)


@dataclass(frozen=True)
class Nothing:
    """A work with no base."""

    batch: int = 1
    needs: frozenset[str] = frozenset()

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        for x, y in data.batches(self.batch):
            assert_type((x, y), tuple[Tensor, Tensor])
            break
        return {"loss": 0.0}


method = Method(Pairs(), Everything(), Shortest(), Signs(lr=0.5), Halving(), staleness=(Fading(), Fading(0.5)))
other = Method(schedule=Pairs(), space=Everything(), rule=First(), work=Nothing(), budget=Halving(), optimizer=Fading())
assert_type(method.schedule, Schedule)
assert_type(method.space, Space)
assert_type(method.rule, Rule)
assert_type(method.work, Work)
assert_type(method.budget, BudgetPolicy)
assert_type(method.staleness, Transform | tuple[Transform, ...])
assert_type(replace(method, rule=Largest()).name, str)
assert_type(fedhet.__version__, str)


def run(clients: Clients, world: World, folder: Path) -> float:
    """What a script does with an experiment."""
    experiment = Experiment(method, clients, world, Limits(versions=3, target=0.9), seed=1, workers=2)
    result = experiment.run(folder)
    assert_type(result, Result)
    assert_type(result.path, Path)
    assert_type(result.row, dict[str, Any])
    assert_type(result["accuracy"], np.ndarray)
    return float(result["accuracy"].max())
