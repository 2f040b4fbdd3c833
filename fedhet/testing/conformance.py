"""Checks of a plug-in of your own: one import and one line run all that fedhet holds its own parts to.

    from fedhet.testing.conformance import check_rule
    from mine import NormWeighted

    def test_conformance():
        check_rule(NormWeighted())

Each raises AssertionError with one line for every check that fails: its name, what was tried, the value found and the
value needed; hostile payloads are among what is tried. A promise that a method does not make on purpose is left out by
the check's name, with the reason: `check_rule(rule, without={"weights": "divides by all clients' samples"})`. The names
are those of `CHECKS`; what each holds is its docstring, in the modules beside this one. Nothing here needs pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fedhet.protocols import Rule, Schedule, Space, Transform, Work
from fedhet.runs.experiment import Transport
from fedhet.testing import (
    rule_checks,
    schedule_checks,
    space_checks,
    transform_checks,
    work_checks,
    world_checks,
)
from fedhet.testing.checking import Check, run_checks

CHECKS: dict[str, dict[str, Check]] = {
    "rule": rule_checks.CHECKS,
    "schedule": schedule_checks.CHECKS,
    "space": space_checks.CHECKS,
    "transform": transform_checks.CHECKS,
    "work": work_checks.CHECKS,
    "model": world_checks.MODEL_CHECKS,
    "data": world_checks.DATA_CHECKS,
    "transport": world_checks.TRANSPORT_CHECKS,
}
"""Kind of plug-in to name of a check to the check."""

NONE: Mapping[str, str] = {}


def check_rule(rule: Rule, *, without: Mapping[str, str] = NONE) -> None:
    """A rule: order, agreement, lengths, scales, weights, and updates as extreme as the gate lets in."""
    run_checks("rule", rule, CHECKS["rule"], without)


def check_schedule(schedule: Schedule, *, without: Mapping[str, str] = NONE) -> None:
    """A schedule, as it is at the start of a run: on a fleet that loses jobs, sleeps and is expelled. Takes seconds."""
    run_checks("schedule", schedule, CHECKS["schedule"], without)


def check_space(space: Space, *, without: Mapping[str, str] = NONE) -> None:
    """A space: what comes back is what was trained, sums are linear, and no hostile payload gets into the model."""
    run_checks("space", space, CHECKS["space"], without)


def check_transform(transform: Transform | Sequence[Transform], *, without: Mapping[str, str] = NONE) -> None:
    """A transform, or several of one slot in the order of `send`: what is announced, memories, hostile payloads."""
    parts = list(transform) if isinstance(transform, Sequence) else [transform]
    run_checks("transform", parts, CHECKS["transform"], without)


def check_work(work: Work, *, without: Mapping[str, str] = NONE) -> None:
    """Local training: honest metrics, equal bits for equal jobs, a memory that can be stored."""
    run_checks("work", work, CHECKS["work"], without)


def check_model(
    factory: Callable[..., nn.Module], *, input_shape: tuple[int, ...] = world_checks.SHAPE,
    classes: int = world_checks.CLASSES, vocabulary: int | None = None, without: Mapping[str, str] = NONE,
) -> None:  # fmt: skip
    """A model's factory, for inputs of this shape; with a `vocabulary` they are whole numbers below it."""
    plugin = world_checks.Factory(factory, input_shape, classes, vocabulary)
    run_checks("model", plugin, CHECKS["model"], without)


def check_data(data: Any, *, without: Mapping[str, str] = NONE) -> None:
    """A data set's loader: labels that are classes, finite inputs, the same data every time."""
    run_checks("data", data, CHECKS["data"], without)


def check_transport(transport: Transport, *, without: Mapping[str, str] = NONE) -> None:
    """A transport: synchronous rounds end with the bits of virtual time. Runs a federation of two clients."""
    run_checks("transport", transport, CHECKS["transport"], without)
