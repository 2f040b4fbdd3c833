"""Any two options of a method run together: a pairwise cover of five axes with very heterogeneous clients.

All clients of this world have one optimum and unequal curvature, speed and reliability, so whatever is chosen, updates
point to one place: after these few versions the run must end nearer to it, or, for the two works whose correction
overshoots while it is learnt (scaffold, feddyn), must not run away. What is no method is left out by `refused`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from fedhet.config import composition
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Method, Misfit
from fedhet.engine.server import Send, Server
from fedhet.engine.stopping import Limits
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from strategies.budgets.fixed import Fixed
from strategies.spaces.control import ControlVariates
from strategies.spaces.full import Full

AXES = ("schedule", "rule", "staleness", "optimizer", "work")
COUNT, VERSIONS = 6, 9
BOUND, SWING = 0.95, 1.5
"""Share of the first distance to the optimum that may be left in the end; works that correct themselves by what they
remember swing about the optimum for longer than these runs, so they are only kept from running away."""

BRISK: Mapping[str, Mapping[str, Any]] = {
    "schedule/fedbuff": {"size": 3},
    "schedule/fedat": {"tiers": 2},
    "schedule/fedcompass": {"q_min": 2, "q_max": 5},
    "staleness/tiers": {"tiers": 2},
    "optimizer/momentum": {"lr": 0.5, "momentum": 0.5},
    "staleness/importance": {"max_factor": 3.0},
    "staleness/taylor": {"lr": 0.1},
    "optimizer/feddyn": {"alpha": 1.0},
    "work/feddyn": {"alpha": 1.0},
    "work/adam": {"lr": 0.02},
}
"""Sizes for six clients and nine versions instead of the options' own, which are for longer runs."""

MEANS = ("mean", "mean_count", "mean_population", "mean_uniform", "fednova", "fednova_population")
"""Rules that are plain weighted means."""

Choice = tuple[str, ...]
"""One option per axis, in the order of `AXES`."""


def refused(pair: Mapping[str, str]) -> str:
    """Why two options are no method; empty if they are one."""
    if "optimizer" in pair and "work" in pair and (pair["optimizer"] == "feddyn") != (pair["work"] == "feddyn"):
        return "FedDyn's linear terms are the sum of both halves"
    if pair.get("rule", MEANS[0]) not in MEANS and (pair.get("staleness") == "ca2fl" or pair.get("work") == "scaffold"):
        return "what reaches the model beside the rule needs a plain mean"
    if pair.get("rule", "").startswith("fednova") and pair.get("work") == "adam":
        return "what Adam's steps weigh depends on its gradients"
    if pair.get("staleness") == "tiers" and pair.get("schedule", "fedat") != "fedat":
        return "a mixture of tiers needs the schedule that makes them"
    if pair.get("rule") == "monna" and pair.get("schedule", "sync") != "sync":
        return "the trusted client must be in every combination"
    if pair.get("rule") == "monna" and pair.get("staleness") == "tiers":
        return "a tier is combined without the trusted client"
    return ""


def fits(choice: Sequence[str]) -> bool:
    """Whether no two options of a choice refuse each other; "" stands for none yet."""
    chosen = [(axis, name) for axis, name in zip(AXES, choice, strict=True) if name]
    return not any(refused(dict(pair)) for pair in itertools.combinations(chosen, 2))


def cover(options: Mapping[str, Sequence[str]]) -> list[Choice]:
    """Choices in which every allowed pair of options of two axes occurs, found greedily; always the same ones."""
    places = list(itertools.combinations(range(len(AXES)), 2))
    names = [list(options[axis]) for axis in AXES]
    left = {(i, a, j, b): None for i, j in places for a in names[i] for b in names[j]}
    left = {pair: None for pair in left if fits(_with(pair))}
    choices = []
    while left:
        choice = _with(next(iter(left)))
        for at in sorted(range(len(AXES)), key=lambda i: -len(names[i])):
            if not choice[at]:
                choice[at] = max(names[at], key=lambda name, at=at, c=choice: _gain(c, at, name, left))  # type: ignore[misc]
        for i, j in places:
            left.pop((i, choice[i], j, choice[j]), None)
        choices.append(tuple(choice))
    return choices


def _with(pair: tuple[int, str, int, str]) -> list[str]:
    choice = [""] * len(AXES)
    choice[pair[0]], choice[pair[2]] = pair[1], pair[3]
    return choice


def _gain(choice: list[str], at: int, name: str, left: Mapping[Any, None]) -> int:
    """New pairs a name brings into a choice; -1 if it does not fit."""
    if not fits([*choice[:at], name, *choice[at + 1 :]]):
        return -1
    others = [(i, other) for i, other in enumerate(choice) if other and i != at]
    return sum(((i, o, at, name) if i < at else (at, name, i, o)) in left for i, o in others)


OPTIONS = {axis: composition.options()[axis] for axis in AXES}
CHOICES = cover(OPTIONS)


@cache
def nodes() -> dict[str, Any]:
    """The configuration of every option by "axis/name", with as few compositions as the longest axis has options."""
    found: dict[str, Any] = {"staleness/none": {}, "optimizer/none": {}}
    for row in range(max(map(len, OPTIONS.values()))):
        choice = {axis: names[row % len(names)] for axis, names in OPTIONS.items()}
        if choice["staleness"] == "tiers":  # reads the number of tiers there
            choice["schedule"] = "fedat"
        if choice["optimizer"] == "feddyn":  # reads alpha there
            choice["work"] = "feddyn"
        cfg = composition.compose([f"{axis}={name}" for axis, name in choice.items()])
        for axis, name in choice.items():
            found.setdefault(f"{axis}/{name}", OmegaConf.to_container(cfg[axis], resolve=True))
    return found


def method(choice: Choice) -> Method:
    parts = {}
    for axis, name in zip(AXES, choice, strict=True):
        key = f"{axis}/{name}"
        node = {**nodes()[key], **BRISK.get(key, {})}
        layers = axis in ("staleness", "optimizer")
        parts[axis] = composition.transforms(node, axis) if layers else composition.instantiate(node, axis)
    space = ControlVariates(COUNT) if "control" in parts["work"].needs else Full()
    return Method(space=space, budget=Fixed(steps=2), **parts)


def run(m: Method) -> tuple[Server, float]:
    """One run with answers that take their time, come in any order or not at all; the share of the distance left."""
    rng = np.random.default_rng(0)
    world = QuadraticWorld(rng.uniform(0.4, 1.0, COUNT), np.ones((COUNT, 4)), rng.integers(5, 30, COUNT).tolist())
    seconds = [0.4, 0.5, 0.6, 0.8, 1.1, 1.5]
    start, device, memories = world.model(), Device(m, world.model(), world, 0), [dict() for _ in range(COUNT)]
    server = Server(m, m.space.begin(start), equal_clients(world), Limits(versions=VERSIONS), 0, lambda *_: None)
    air: list[tuple[float, int, Send]] = []
    server.start()
    now = 0.0
    while not server.over:
        for send in server.settle(now):
            heapq.heappush(air, (now + seconds[send.job.client] * (1 + 0.1 * rng.random()), send.job.id, send))
        timer = server.next_timer
        assert air or timer is not None, "nothing will ever happen again"
        if timer is not None and (not air or timer < air[0][0]):
            now = max(now, timer)
            server.wake(now)
            continue
        now, _, send = heapq.heappop(air)
        if send.job.client == 4 and send.job.turn % 3 == 1:
            server.failed(send.job.id, "dropout", now)
        else:
            server.arrived(device.answer(send.job, send.payload, memories[send.job.client]), now)
        assert now < 1000, "no end in sight"
    m.space.restore(start, server.state)
    return server, float(np.linalg.norm(start.params.numpy() - world.optimum) / np.linalg.norm(world.optimum))


@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_two_of_any_kind_run_together_and_end_within_their_bound(choice: Choice) -> None:
    try:
        m = method(choice)
    except Misfit:
        return
    server, left = run(m)
    assert server.version == VERSIONS
    assert left < (SWING if choice[-1] in ("feddyn", "scaffold") else BOUND), f"{left:.2f} of the distance is left"


def test_every_pair_that_is_a_method_is_among_the_choices() -> None:
    for (i, a), (j, b) in itertools.combinations(enumerate(AXES), 2):
        for x, y in itertools.product(OPTIONS[a], OPTIONS[b]):
            assert refused({a: x, b: y}) or any(c[i] == x and c[j] == y for c in CHOICES), (x, y)
