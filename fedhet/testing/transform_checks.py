"""The checks of a transform, over several combinations with late updates among them.

Several transforms of one axis are checked together, in the order of `send`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedhet.bases import AbstractTransform
from fedhet.numerics import wire_format
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.protocols import Transform
from fedhet.testing.checking import Check, ensure, option
from fedhet.testing.hostile import fitting
from fedhet.testing.quadratic import FakeView, QuadraticWorld, Watched, equal_clients
from fedhet.types import Budget, Job, Memory, Tree, Update

COUNT, VERSIONS, AGES = 12, 9, (0, 2, 6)
SCHEMA = Schema((("0.weight", Leaf((4, 3))), ("0.bias", Leaf((4,)))))


def random_tree(seed: int) -> FlatTree:
    """A delta or model of standard normal numbers."""
    return FlatTree(SCHEMA, torch.from_numpy(np.random.default_rng(seed).normal(size=SCHEMA.size)).float())


def through_the_wire(memory: Memory) -> Memory:
    """A memory as it is after saving and loading a checkpoint."""
    return dict(wire_format.open_tree(bytearray(wire_format.encode(memory))))


@dataclass
class Play:
    """Transforms over `VERSIONS` combinations of different clients, with updates of several `AGES`.

    `keep` is applied to a memory between two uses, `crossing` to an update on the wire; `delta` gives a job's update.
    """

    transforms: Sequence[Transform]
    keep: Callable[[Memory], Memory] = lambda memory: memory
    crossing: Callable[[Update], Update] = lambda update: update
    delta: Callable[[int], FlatTree] = random_tree
    server: dict[int, Memory] = field(default_factory=dict)
    device: dict[tuple[int, int], Memory] = field(default_factory=dict)
    seen: list[tuple[Tree, bytes]] = field(default_factory=list)
    """Trees with their bits at the time of their creation."""

    def __post_init__(self) -> None:
        roster = equal_clients(QuadraticWorld([1.0] * COUNT, np.zeros(COUNT)))
        self.view = FakeView(roster, option("space", "full"), random_tree(99))
        self.view.bases[0] = self.view.state
        self.remember(self.view.state)

    def remember(self, *trees: Tree) -> None:
        """Store the present bits of these trees."""
        self.seen += [(tree, bytes(wire_format.encode(tree))) for tree in trees]

    def rounds(self) -> Iterator[tuple[list[Update], list[Update], Tree]]:
        """(updates as sent, updates as received, the step) of every version."""
        view = self.view
        for version in range(VERSIONS):
            cohort = [(5 * version + i) % COUNT for i in range(5)]
            sent = [self._send(client, i) for i, client in enumerate(sorted(cohort))]
            view.cohort = [u.job for u in sent]
            for job in view.cohort:
                seen = view.watched.setdefault(job.client, Watched())
                seen.finished, seen.seconds_per_step = seen.finished + 1, 0.1 * (1 + job.client)
            came = [self._arrive(self.crossing(u)) for u in sent]
            step = option("rule", "mean")(came, view.space, view)
            for i, transform in reversed(list(enumerate(self.transforms))):
                memory = self.keep(self.server.setdefault(i, {}))
                step = transform.finish(step, view, memory)
                self.server[i] = memory
            yield sent, came, step
            view.state = view.space.merge(view.state, step)
            view.version, view.cohort = version + 1, ()
            view.bases[view.version] = view.state
            self.remember(view.state)

    def _send(self, client: int, i: int) -> Update:
        version = max(0, self.view.version - AGES[i % 3])
        job = Job(100 * self.view.version + client, client, version, self.view.version, Budget(3), 0.0)
        update = Update(job, self.delta(job.id), 10.0, metrics={"loss": 1.0})
        for k, transform in enumerate(self.transforms):
            memory = self.keep(self.device.setdefault((client, k), {}))
            update = transform.send(update, memory)
            self.device[client, k] = memory
        return update

    def _arrive(self, update: Update) -> Update:
        for i, transform in reversed(list(enumerate(self.transforms))):
            memory = self.keep(self.server.setdefault(i, {}))
            update = transform.arrive(update, self.view, memory)
            self.server[i] = memory
        return update


def announced(transforms: Sequence[Transform]) -> Schema:
    """The schema of an update on the wire, by `wire`."""
    schema = SCHEMA
    for transform in transforms:
        schema = transform.wire(schema)
    return schema


def wire(transforms: Sequence[Transform]) -> None:
    """Sent updates match the schema of `wire`, and are received unchanged."""
    expected = announced(transforms)
    for sent, came, step in Play(transforms).rounds():
        for what, schema, trees in (
            ("sent", expected, [u.delta for u in sent]),
            ("come in", SCHEMA, [u.delta for u in came]),
            ("the step", SCHEMA, [step]),
        ):
            for found in map(Schema.of, trees):
                ensure(found == schema, f"{what}: {dict(found)}, needs {dict(schema)}")
        for what, delta in [("an update that came in", u.delta) for u in came] + [("the step", step)]:
            flat = isinstance(delta, FlatTree)
            ensure(
                flat, f"{what} is a {type(delta).__name__} of separate tensors: `tree.flatten` makes one buffer of it"
            )


def finite(transforms: Sequence[Transform]) -> None:
    """Values are finite, and every update has its job."""
    for sent, came, step in Play(transforms).rounds():
        ensure([u.job for u in came] == [u.job for u in sent], "an update comes in as that of another job")
        for update in came:
            _sound(update, f"the update of client {update.job.client}")
        for name, leaf in step.items():
            ensure(bool(torch.isfinite(leaf).all()), f"the step's {name} is {leaf.tolist()}")


def _sound(update: Update, what: str) -> None:
    told = f"{what} has scale {update.scale} and weight {update.weight}"
    ensure(bool(np.isfinite(update.scale) and np.isfinite(update.weight) and update.weight >= 0), told)
    for name, leaf in update.delta.items():
        ensure(bool(torch.isfinite(leaf).all()), f"{what}: {name} is {leaf.reshape(-1)[:8].tolist()}")


def memory(transforms: Sequence[Transform]) -> None:
    """A memory that was saved and loaded gives the same results."""
    both = zip(Play(transforms).rounds(), Play(transforms, through_the_wire).rounds(), strict=True)
    for version, ((_, _, kept), (_, _, stored)) in enumerate(both):
        same = wire_format.encode(kept) == wire_format.encode(stored)
        ensure(same, f"version {version} has other bits if memories were written to disk and read in between")


def repeat(transforms: Sequence[Transform]) -> None:
    """Earlier updates and models are never modified."""
    play = Play(transforms)
    for version, (sent, came, step) in enumerate(play.rounds()):
        play.remember(*(u.delta for u in sent), *(u.delta for u in came), step)
        same = all(wire_format.encode(tree) == text for tree, text in play.seen)
        ensure(same, f"at version {version} a tree that was given out or given in before was written to")


def nothing(transforms: Sequence[Transform]) -> None:
    """Zero updates with an empty memory give a zero step."""
    play = Play(transforms, delta=lambda job: FlatTree(SCHEMA, torch.zeros(SCHEMA.size)))
    for version, (_, _, step) in enumerate(play.rounds()):
        for name, leaf in step.items():
            told = f"all updates are zero, and the step's {name} is {leaf.tolist()} (version {version})"
            ensure(float(leaf.abs().max()) < 1e-6, told)  # but for rounding


def hostile(transforms: Sequence[Transform]) -> None:
    """Every payload that matches the schema is received with finite values, as an error would end the run."""
    expected = announced(transforms)
    for what, made in fitting(expected):
        play = Play(transforms, crossing=lambda update, made=made: replace(update, delta=made))  # type: ignore[misc]
        try:
            _, came, _ = next(play.rounds())
        except Exception as error:
            raise AssertionError(
                f"{what}, which fits what `wire` announces: {type(error).__name__}: {error}"
            ) from error
        for update in came:
            found = Schema.of(update.delta)
            ensure(found == SCHEMA, f"{what}: comes in as {dict(found)}, needs {dict(SCHEMA)}")
            _sound(update, what)


def effect(transforms: Sequence[Transform]) -> None:
    """The step with the transform differs from the one without it."""
    both = zip(Play(transforms).rounds(), Play([AbstractTransform()]).rounds(), strict=True)
    same = all(wire_format.encode(a[2]) == wire_format.encode(b[2]) for a, b in both)
    ensure(not same, f"in {VERSIONS} versions it changes no step")


CHECKS: dict[str, Check] = {
    "wire": wire,
    "finite": finite,
    "memory": memory,
    "repeat": repeat,
    "nothing": nothing,
    "hostile": hostile,
    "effect": effect,
}
