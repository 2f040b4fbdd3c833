"""What every layer promises around the wire, over several combinations with late answers among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from fedhet.bases import AbstractTransform
from fedhet.engine.method import ONION
from fedhet.numerics import wire_format
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.protocols import Transform
from fedhet.testing.quadratic import FakeView, QuadraticWorld, Watched, equal_clients
from fedhet.types import Budget, Job, Memory, Tree, Update
from strategies.rules.mean import Mean
from strategies.spaces.full import Full

AXES = ONION
COUNT, VERSIONS, AGES = 12, 9, (0, 2, 6)
SCHEMA = Schema((("0.weight", Leaf((4, 3))), ("0.bias", Leaf((4,)))))


def random_tree(seed: int) -> FlatTree:
    return FlatTree(SCHEMA, torch.from_numpy(np.random.default_rng(seed).normal(size=SCHEMA.size)).float())


def through_the_wire(memory: Memory) -> Memory:
    """As a checkpoint keeps it."""
    return dict(wire_format.open_tree(bytearray(wire_format.encode(memory))))


@dataclass
class Play:
    """The layers of one option over `VERSIONS` combinations, each of other clients, answers of several `AGES`;
    `keep` is what happens to a memory between two uses."""

    layers: Sequence[Transform]
    keep: Callable[[Memory], Memory] = lambda memory: memory
    server: dict[int, Memory] = field(default_factory=dict)
    device: dict[tuple[int, int], Memory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        roster = equal_clients(QuadraticWorld([1.0] * COUNT, np.zeros(COUNT)))
        self.view = FakeView(roster, Full(), random_tree(99))
        self.view.bases[0] = self.view.state

    def rounds(self) -> Iterator[tuple[list[Update], list[Update], Tree]]:
        """(updates as sent, updates as they came in, the step) of every version."""
        view = self.view
        for version in range(VERSIONS):
            cohort = [(5 * version + i) % COUNT for i in range(5)]
            sent = [self._send(client, i) for i, client in enumerate(sorted(cohort))]
            view.cohort = [u.job for u in sent]
            for job in view.cohort:
                seen = view.watched.setdefault(job.client, Watched())
                seen.finished, seen.seconds_per_step = seen.finished + 1, 0.1 * (1 + job.client)
            came = [self._arrive(u) for u in sent]
            step = Mean()(came, view.space, view)
            for i, layer in reversed(list(enumerate(self.layers))):
                memory = self.keep(self.server.setdefault(i, {}))
                step = layer.finish(step, view, memory)
                self.server[i] = memory
            yield sent, came, step
            view.state = view.space.merge(view.state, step)
            view.version, view.cohort = version + 1, ()
            view.bases[view.version] = view.state

    def _send(self, client: int, i: int) -> Update:
        version = max(0, self.view.version - AGES[i % 3])
        job = Job(100 * self.view.version + client, client, version, self.view.version, Budget(3), 0.0)
        update = Update(job, random_tree(job.id), 10.0, metrics={"loss": 1.0})
        for k, layer in enumerate(self.layers):
            memory = self.keep(self.device.setdefault((client, k), {}))
            update = layer.send(update, memory)
            self.device[client, k] = memory
        return update

    def _arrive(self, update: Update) -> Update:
        for i, layer in reversed(list(enumerate(self.layers))):
            memory = self.keep(self.server.setdefault(i, {}))
            update = layer.arrive(update, self.view, memory)
            self.server[i] = memory
        return update


@pytest.fixture
def layers(option: str, build: Callable[[str], Any]) -> Sequence[Transform]:
    found: Sequence[Transform] = build(option)
    assert found
    return found


def test_what_is_sent_looks_as_announced_and_comes_in_as_it_was(option: str, layers: Sequence[Transform]) -> None:
    announced = SCHEMA
    for layer in layers:
        announced = layer.wire(announced)
    for sent, came, step in Play(layers).rounds():
        for update in sent:
            assert Schema.of(update.delta) == announced
        for update in came:
            assert Schema.of(update.delta) == SCHEMA
        assert Schema.of(step) == SCHEMA


def test_numbers_stay_finite_and_who_sent_what_stays_known(option: str, layers: Sequence[Transform]) -> None:
    for sent, came, step in Play(layers).rounds():
        assert [u.job for u in came] == [u.job for u in sent]
        for update in came:
            assert np.isfinite(update.scale) and np.isfinite(update.weight) and update.weight >= 0
            assert all(torch.isfinite(leaf).all() for leaf in update.delta.values())
        assert all(torch.isfinite(leaf).all() for leaf in step.values())


def test_a_memory_that_was_on_disk_works_like_one_that_was_not(option: str, layers: Sequence[Transform]) -> None:
    for (_, _, kept), (_, _, stored) in zip(
        Play(layers).rounds(), Play(layers, through_the_wire).rounds(), strict=True
    ):
        assert wire_format.encode(kept) == wire_format.encode(stored)


def test_an_earlier_answer_or_model_is_never_written_to(option: str, layers: Sequence[Transform]) -> None:
    play = Play(layers)
    seen: list[tuple[Tree, bytes]] = []
    for sent, came, step in play.rounds():
        trees = [*(u.delta for u in sent), *(u.delta for u in came), step, *play.view.bases.values()]
        seen += [(t, wire_format.encode(t)) for t in trees]
        assert all(wire_format.encode(t) == text for t, text in seen)


def test_a_layer_does_something(option: str, layers: Sequence[Transform]) -> None:
    """A step with it differs from the step without it, unless all its strengths are at nothing."""
    neutral = {"staleness/constant": "leaves the age out", "optimizer/sgd": "its lr is 1"}
    same = all(
        wire_format.encode(a[2]) == wire_format.encode(b[2])
        for a, b in zip(Play(layers).rounds(), Play([AbstractTransform()]).rounds(), strict=True)
    )
    assert same == (option in neutral)
