"""Parts that are not what their axis asks for: `mypy --strict` rejects each line that ends in a code, and no other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clients.work.loop import AbstractLocal
from fedhet import Experiment, Limits, Method
from fedhet.bases import AbstractDense, AbstractLinearRule, AbstractTransform
from fedhet.model.flat_model import Model
from fedhet.protocols import Shard, Space, View
from fedhet.types import Budget, ClientId, Event, Job, Memory, Tree, Update
from tests.typing.plugins import Everything, First, Halving, Nothing, Pairs


class Numbers:
    """A schedule that gives numbers of clients in place of commands."""

    def react(self, event: Event, view: View) -> Iterator[int]:
        yield from view.idle


class Steps:
    """A budget that is a number."""

    def __call__(self, client: ClientId, view: View) -> int:
        return Budget(steps=3).steps


class Half(AbstractDense):
    """A space that lacks what a client does with it."""

    def begin(self, model: Model) -> Tree:
        return {}

    def restore(self, model: Model, state: Tree) -> None: ...


class Listed(AbstractLinearRule):
    """A rule whose coefficients are no array."""

    def coefficients(  # override
        self, gram: np.ndarray, weights: np.ndarray, updates: Sequence[Update], view: View
    ) -> list[float]:
        return [1.0] * len(weights)


class Blind:
    """A rule that does not say what it needs."""

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        return updates[0].delta


class Bare(AbstractTransform):
    """A transform that gives the delta in place of the update."""

    def arrive(self, update: Update, view: View, memory: Memory) -> Tree:  # override
        update.scale = 0.5  # misc
        return update.delta


class Wordy(AbstractLocal):
    """A work that reports words."""

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        return {"loss": "low"}  # dict-item


@dataclass(frozen=True)
class Endless:
    """A work that does not say how many samples a step has."""

    needs: frozenset[str] = frozenset()

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        return {}


Method(Numbers(), Everything(), First(), Nothing(), Halving())  # arg-type
Method(Pairs(), Half(), First(), Nothing(), Halving())  # abstract
Method(Pairs(), Everything(), Blind(), Nothing(), Halving())  # arg-type
Method(Pairs(), Everything(), First(), Endless(), Halving())  # arg-type
Method(Pairs(), Everything(), First(), Nothing(), Steps())  # arg-type
Method(Pairs(), Everything(), First(), Nothing())  # call-arg
Method(Pairs(), Everything(), First(), Nothing(), Halving(), staleness=Halving())  # arg-type
Limits(rounds=3)  # call-arg
Limits(versions="3")  # arg-type


def run(experiment: Experiment) -> str:
    """What is no part of a result."""
    result = experiment.run(Path("run"), resume="yes")  # arg-type
    print(result.accuracy)  # attr-defined
    return result.row  # return-value
