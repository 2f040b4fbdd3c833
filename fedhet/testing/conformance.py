"""The conformance checks of plug-ins, which fedhet's own options pass as well: one import and one line.

    from fedhet.testing.conformance import check_rule
    from mine import NormWeighted

    def test_conformance():
        check_rule(NormWeighted())

Each function raises AssertionError with one line per failed check: its name, the input, the value and the expected
value. Malformed and extreme payloads are among the inputs. A check that does not apply to a method is left out by name,
with the reason: `check_rule(rule, without={"weights": "divides by all clients' samples"})`. The names are those of
`CHECKS`; their docstrings, in the other modules of this folder, say what they require. pytest is not needed.
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
"""The checks by kind of plug-in and name."""

NONE: Mapping[str, str] = {}


def check_rule(rule: Rule, *, without: Mapping[str, str] = NONE) -> None:
    """A rule: order, equal updates, norms, scales, weights, and the most extreme updates that the gate accepts."""
    run_checks("rule", rule, CHECKS["rule"], without)


def check_schedule(schedule: Schedule, *, without: Mapping[str, str] = NONE) -> None:
    """A schedule in its initial state: on a fleet with lost jobs, offline times and revoked clients. Takes seconds."""
    run_checks("schedule", schedule, CHECKS["schedule"], without)


def check_space(space: Space, *, without: Mapping[str, str] = NONE) -> None:
    """A space: updates are what was trained, sums are linear, and no malformed payload gets into the model."""
    run_checks("space", space, CHECKS["space"], without)


def check_transform(transform: Transform | Sequence[Transform], *, without: Mapping[str, str] = NONE) -> None:
    """A transform, or several of one axis in the order of `send`: wire format, state, malformed payloads."""
    parts = list(transform) if isinstance(transform, Sequence) else [transform]
    run_checks("transform", parts, CHECKS["transform"], without)


def check_work(work: Work, *, without: Mapping[str, str] = NONE) -> None:
    """Local training: correct metrics, equal bits for equal jobs, state that can be stored."""
    run_checks("work", work, CHECKS["work"], without)


def check_model(
    factory: Callable[..., nn.Module], *, input_shape: tuple[int, ...] = world_checks.SHAPE,
    classes: int = world_checks.CLASSES, vocabulary: int | None = None, without: Mapping[str, str] = NONE,
) -> None:  # fmt: skip
    """A model factory, for inputs of this shape; with a `vocabulary` they are integers below it."""
    plugin = world_checks.Factory(factory, input_shape, classes, vocabulary)
    run_checks("model", plugin, CHECKS["model"], without)


def check_data(data: Any, *, without: Mapping[str, str] = NONE) -> None:
    """A data set: labels in the range of classes, finite inputs, the same data every time."""
    run_checks("data", data, CHECKS["data"], without)


def check_transport(transport: Transport, *, without: Mapping[str, str] = NONE) -> None:
    """A transport: synchronous rounds give the bits of virtual time. Runs a federation of two clients."""
    run_checks("transport", transport, CHECKS["transport"], without)
