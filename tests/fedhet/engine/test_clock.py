"""A wall clock that jumps backward: the server's time stops until the clock catches up, and nothing is lost."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import numpy as np
import pytest

from clients.work.sgd import Sgd
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Method
from fedhet.engine.server import Send, Server
from fedhet.engine.stopping import Limits
from fedhet.numerics.wire_format import digest, encode
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedcompass import FedCompass
from strategies.schedules.fedfix import FedFix
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

COUNT = 4
WORLD = QuadraticWorld([0.5, 0.7, 0.9, 1.0], np.arange(COUNT * 3.0).reshape(COUNT, 3))
SECONDS = (0.1, 0.2, 0.35, 0.5)
"""Of a step."""


def run(schedule: Any, jump: float) -> tuple[str, list[float]]:
    """The digest of the model after 30 versions, and every time in the record; every third event the clock the server
    is told is `jump` seconds back."""
    method = Method(schedule, Full(), Mean(over="population"), Sgd(lr=0.1), Fixed(steps=3))
    times: list[float] = []
    start = WORLD.model()
    device = Device(method, WORLD.model(), WORLD, 0)
    server = Server(
        method, method.space.begin(start), equal_clients(WORLD), Limits(versions=30), 0, lambda t, *_: times.append(t)
    )
    air: list[tuple[float, int, Send]] = []
    server.start()
    now, events = 0.0, 0
    while not server.over:
        told = now - jump if events % 3 == 2 else now
        for send in server.settle(told):
            heapq.heappush(air, (now + SECONDS[send.job.client] * send.job.budget.steps, send.job.id, send))
        events += 1
        told = now - jump if events % 3 == 2 else now
        timer = server.next_timer
        if timer is not None and (not air or timer < air[0][0]):
            now = max(now, timer)
            server.wake(now)  # a timer that rings early rings again
            continue
        now, _, send = heapq.heappop(air)
        server.arrived(device.answer(send.job, send.payload, {}), max(0.0, now - jump if events % 3 == 2 else now))
        assert events < 5000, "no end in sight"
    return digest(encode(server.state)), times


@pytest.mark.parametrize("make", [FedCompass, Sync, lambda: FedBuff(size=2), lambda: FedFix(1.0)])
def test_times_in_the_record_never_fall_and_the_run_ends(make: Any) -> None:
    for jump in (0.0, 0.05, 7.0):
        _, times = run(make(), jump)
        assert all(a <= b for a, b in itertools.pairwise(times))


def test_a_schedule_that_reads_no_clock_does_not_notice() -> None:
    assert run(FedBuff(size=2), 7.0)[0] == run(FedBuff(size=2), 0.0)[0]
