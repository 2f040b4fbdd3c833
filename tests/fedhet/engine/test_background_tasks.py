"""Server tasks: the schedule gets the event of an update when its task is complete, and no update is lost."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message
from flwr.app import RecordDict as Records

from clients.work.sgd import Sgd
from fedhet.bases import AbstractTransform
from fedhet.engine.background_tasks import InlineExecutor, ServerTask
from fedhet.engine.background_thread import ThreadExecutor
from fedhet.engine.method import Method
from fedhet.engine.server import Send, Server
from fedhet.engine.stopping import Limits
from fedhet.flower.compat import claim_identity
from fedhet.flower.execution import Outcome
from fedhet.numerics.tree import FlatTree
from fedhet.protocols import Schedule, View
from fedhet.runs.experiment import Experiment
from fedhet.simulation.background_tasks import PoolExecutor
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from fedhet.types import Memory, Tree, Update
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.fedat import FedAT
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full


@dataclass(frozen=True)
class Doubling(AbstractTransform):
    """Doubles what client 0 sends, after two seconds of thought."""

    def prepare(self, update: Update, view: View, memory: Memory) -> tuple[Tree, float] | None:
        return ({"delta": update.delta["x"]}, 2.0) if update.job.client == 0 else None

    def run(self, task: Tree) -> Tree:
        return {"twice": 2.0 * task["delta"]}

    def complete(self, update: Update, result: Tree, memory: Memory) -> None:
        memory["twice"] = result["twice"]

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        if update.job.client != 0:
            return update
        return Update(update.job, FlatTree(update.delta.schema, memory.pop("twice")), update.weight)  # type: ignore[attr-defined]


def begun(schedule: Schedule | None = None) -> tuple[Server, list[Send], list[dict[str, Any]]]:
    world, rows = QuadraticWorld([1.0] * 2, [1.0, 2.0]), list[dict[str, Any]]()
    parts = schedule or FedBuff(size=1), Full(), Mean(over="count"), Sgd(lr=0.1), Fixed(steps=1)
    method = Method(*parts, staleness=(Doubling(),))
    state = method.space.begin(world.model())
    emit = lambda t, name, fields: rows.append({"t": t, "event": name, **fields})  # noqa: E731
    server = Server(method, state, equal_clients(world), Limits(versions=9), 0, emit)
    server.start()
    return server, server.settle(0.0), rows


def answer(send: Send, value: float) -> Update:
    assert isinstance(send.payload, FlatTree)
    return Update(send.job, FlatTree(send.payload.schema, torch.full_like(send.payload.flat, value)), 1.0)


def test_an_update_counts_when_the_chore_is_done_and_others_go_on_meanwhile() -> None:
    server, sends, rows = begun()
    server.arrived(answer(sends[0], 1.0), 1.0)
    assert server.version == 0 and not server.buffer and server.next_timer == 3.0 and server.row()["buffered"] == 1
    server.arrived(answer(sends[1], 0.25), 2.0)
    assert server.version == 1
    server.wake(2.5)
    assert server.version == 1
    server.wake(3.0)
    assert server.version == 2 and server.next_timer is None and float(server.state["x"]) == 2.25
    assert server.row()["buffered"] == 0 and server.row()["accepted"] == 2
    told = [row for row in rows if row["event"] in ("arrived", "prepared")]
    assert [(row["t"], row["event"]) for row in told] == [(1.0, "arrived"), (1.0, "prepared"), (2.0, "arrived")]
    assert told[1]["until"] == 3.0 and rows[-1]["staleness"] == [1]


def test_who_is_expelled_takes_its_chore_along() -> None:
    server, sends, _ = begun()
    server.arrived(answer(sends[0], 1.0), 1.0)
    server.expel(0, "banned", 1.5)
    server.wake(3.0)
    row = server.row()
    assert server.version == 0 and server.next_timer is None
    assert row["late"] == {"banned": 1} and row["buffered"] == 0


def test_a_copy_is_refused_while_a_layer_still_has_a_chore_with_the_first(tmp_path: Path) -> None:
    """Equal clients send equal bytes; the first update is not in the buffer yet when the second comes."""
    world = QuadraticWorld([1.0] * 2, [1.0, 1.0])
    method = Method(FedBuff(size=1), Full(), Mean(over="count"), Sgd(lr=0.1), Fixed(steps=1), staleness=(Doubling(),))
    row = (
        Experiment(method, equal_clients(world), world, Limits(versions=1), gate={"reject_duplicates": True})
        .run(tmp_path)
        .row
    )
    assert row["updates"]["rejected"] == {"clone": 3}, "asked again each second, until the first is decided on"
    assert row["updates"]["accepted"] == 1


def test_an_update_whose_round_is_over_when_its_chore_is_done_is_late() -> None:
    """The client is asked again meanwhile, and the new round waits for the new answer."""
    server, sends, _ = begun(Sync(deadline_seconds=1.5))
    for send in sends:
        server.arrived(answer(send, 1.0), 1.0)
    server.wake(1.5)
    again = {send.job.client: send for send in server.settle(1.5)}
    assert server.version == 1 and set(again) == {0, 1}
    server.wake(3.0)
    assert server.row()["late"] == {"late": 1} and server.version == 1
    server.arrived(answer(again[0], 1.0), 3.5)
    assert server.row()["buffered"] == 1 and server.row()["late"] == {"late": 1}


def test_an_update_that_is_done_after_its_client_left_and_came_back_is_late_for_its_tier() -> None:
    server, sends, _ = begun(FedAT(tiers=1))
    server.arrived(answer(sends[0], 1.0), 1.0)
    server.left(0, 1.5)
    server.joined(0, 1.6)
    server.arrived(answer(sends[1], 1.0), 2.0)
    assert server.version == 1 and [send.job.client for send in server.settle(2.0)] == [0, 1]
    server.wake(3.0)
    assert server.row()["late"] == {"late": 1}


def test_in_real_time_a_chore_is_begun_in_a_thread_at_once_and_meets_its_task_as_it_was() -> None:
    server, sends, _ = begun()
    began, go_on, threads = threading.Event(), threading.Event(), []

    class Slow(InlineExecutor):
        def result(self, chore: ServerTask) -> Tree:
            threads.append(threading.get_ident())
            began.set()
            assert go_on.wait(30)
            return super().result(chore)

    with ThreadExecutor(Slow(dict(server.method.transforms))) as aside:
        server.server_tasks.set_executor(aside)
        update = answer(sends[0], 1.0)
        server.arrived(update, 1.0)
        assert began.wait(30), "begun before it is due"
        update.delta["x"].fill_(100.0)  # memory that is used again
        server.arrived(answer(sends[1], 0.25), 2.0)
        assert server.version == 1, "others are combined meanwhile"
        go_on.set()
        server.wake(3.0)
    assert server.version == 2 and float(server.state["x"]) == 2.25
    assert len(threads) == 1 and threads[0] != threading.get_ident()


def test_what_fails_in_a_thread_fails_where_it_is_asked_for_and_what_is_dropped_is_never_asked() -> None:
    class Failing(InlineExecutor):
        def result(self, chore: ServerTask) -> Tree:
            raise ArithmeticError("no such task")

    server, sends, _ = begun()
    with ThreadExecutor(Failing(dict(server.method.transforms))) as aside:
        server.server_tasks.set_executor(aside)
        server.arrived(answer(sends[0], 1.0), 1.0)
        with pytest.raises(ArithmeticError, match="no such task"):
            server.wake(3.0)
    server, sends, _ = begun()
    with ThreadExecutor(Failing(dict(server.method.transforms))) as aside:
        server.server_tasks.set_executor(aside)
        server.arrived(answer(sends[0], 1.0), 1.0)
        server.expel(0, "banned", 1.5)
        server.wake(3.0)
    assert server.version == 0


@dataclass
class Dying:
    """An executor whose workers die of every task."""

    tasks: dict[int, Message] = field(default_factory=dict)

    def submit(self, number: int, urgency: int, message: Message, context: Context) -> None:
        self.tasks[number] = message

    def result(self, number: int) -> Outcome:
        return Outcome(Message(Error(1, "died"), reply_to=self.tasks.pop(number)), Records())

    def close(self) -> None:
        return None


def test_a_chore_whose_worker_dies_is_done_by_the_server() -> None:
    claim_identity(1)
    server, sends, _ = begun()
    pool = Dying()
    server.server_tasks.set_executor(PoolExecutor(pool, InlineExecutor(dict(server.method.transforms))))
    server.arrived(answer(sends[0], 1.0), 1.0)
    (chore,) = server.server_tasks.open.values()
    assert isinstance(chore, ServerTask) and list(pool.tasks) == [-1 - sends[0].job.id]
    server.wake(3.0)
    assert float(server.state["x"]) == 2.0 and not pool.tasks
