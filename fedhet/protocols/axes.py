"""The axes of a method, one protocol each, and the data that local training reads. `space` has the axis of spaces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fedhet.protocols.space import Space
from fedhet.protocols.view import View
from fedhet.types import Budget, ClientId, Command, Event, Job, Memory, Tree, Update

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fedhet.model.flat_model import Model
    from fedhet.numerics.tree import Schema


class Schedule(Protocol):
    """Events in, commands out. Sees no tensor, clock or thread. Each command is executed before the next one is
    generated, so after `yield Aggregate(...)` the same function sees the new `view.version`."""

    def react(self, event: Event, view: View) -> Iterable[Command]: ...


class BudgetPolicy(Protocol):
    """Decides a client's budget from its profile and from what the server observed of it."""

    def __call__(self, client: ClientId, view: View) -> Budget: ...


class Rule(Protocol):
    """N updates to one delta. Must apply `Update.scale` and normalise `Update.weight` itself.

    A rule that is a plain weighted mean has an attribute `gives` that contains "mean": its result is linear in every
    update, so a term may be added to the model outside of the rule.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Of these words: "each", access to single updates; "coordinates", leaves that line up; "distances", inner
        products over the same coordinates; "fednova_norm", work that reports the sum of its step weights."""
        ...

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree: ...


@runtime_checkable
class Transform(Protocol):
    """A change of an update on both sides of the wire; `fedhet.bases.AbstractTransform` is the identity."""

    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def hides(self) -> frozenset[str]: ...
    @property
    def notice(self) -> str:
        """What the operator must know before the run starts, such as what the server learns; empty if nothing."""
        ...

    def send(self, update: Update, memory: Memory) -> Update:
        """Client: after training, before the wire. `memory` is this client's."""
        ...

    def wire(self, schema: Schema) -> Schema:
        """The schema that `send` gives a delta of this schema; the gate checks answers against it."""
        ...

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        """Server, per answer, when it is combined. `memory` is the transform's, shared by all clients."""
        ...

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        """Server, once per combination, on the rule's result; returns the step that is added to the model."""
        ...


class Shard(Protocol):
    """One client's training data in one job; its streams are keyed by (seed, client, turn)."""

    def __len__(self) -> int: ...
    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless mini-batches: shuffled epochs, the last batch of an epoch may be smaller."""
        ...

    def all_samples(self) -> tuple[Tensor, Tensor]:
        """All samples, in storage order."""
        ...

    def rng(self, purpose: str) -> np.random.Generator:
        """A stream of this client's job, for noise or augmentation."""
        ...


class Work(Protocol):
    """Local training. Changes the model in place and reports finite scalar metrics (at least "loss")."""

    @property
    def needs(self) -> frozenset[str]:
        """What the space must give in addition to parameters, such as "control" for control variates."""
        ...

    @property
    def batch(self) -> int:
        """Samples per optimiser step; epochs and virtual time are computed from it."""
        ...

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]: ...
