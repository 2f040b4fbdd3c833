"""The time of a schedule per answer does not grow with the fleet."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from strategies.schedules.fedat import FedAT
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedfix import FedFix
from strategies.schedules.sync import Sync
from strategies.schedules.time_window import TimeWindow

World = Any


def lines_run(work: Callable[[], object]) -> int:
    """Lines of any schedule executed by `work`: a measure of cost that does not depend on the machine."""
    count = 0

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        return local if "/strategies/schedules/" in frame.f_code.co_filename.replace("tests/", "") else None

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(old)
    return count


@pytest.mark.parametrize(
    "make",
    [
        lambda n: Sync(),
        lambda n: FedBuff(size=10),
        lambda n: FedFix(1.0),
        lambda n: FedAT(tiers=5),
        lambda n: TimeWindow(window_seconds=1.0),
    ],
    ids=["sync", "fedbuff", "fedfix", "fedat", "time_window"],
)
def test_cost_per_answer_does_not_grow_with_the_fleet(world: World, make: Callable[[int], Any]) -> None:
    def run(clients: int) -> float:
        w = world(make(clients), clients, lambda job: 0.3 + 2.0 * (job.client * 7919 % 9973) / 9973)
        lines = lines_run(lambda: w.run(seconds=8.0))
        return lines / len(w.jobs)

    assert run(800) < 1.5 * run(100)
