"""A server restored from a checkpoint continues exactly as the original."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.work.sgd import Sgd
from fedhet.engine.answer import Answer
from fedhet.engine.method import Method
from fedhet.engine.server import Send, Server
from fedhet.engine.stopping import MAX_CONSECUTIVE_FAILURES, Limits, TooManyFailures
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.numerics import wire_format
from fedhet.numerics.tree import FlatTree
from fedhet.runs import checkpoint
from fedhet.runs.journaled_server import Journaled, replay
from fedhet.runs.write_ahead_log import Journal
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from fedhet.types import Update
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedcompass import FedCompass
from strategies.spaces.full import Full

DIM = 17
"""Coordinates of the model: a number that no other tensor of the process has."""


def fresh(schedule: Callable[[], Any], clients: int = 3) -> Server:
    world = QuadraticWorld([1.0] * clients, torch.ones(clients, DIM).numpy())
    method = Method(schedule(), Full(), Mean(over="count"), Sgd(lr=0.1), Fixed(steps=1))
    state = method.space.begin(world.model())
    return Server(method, state, equal_clients(world), Limits(versions=10**6), 0, lambda t, name, fields: None)


def begun(schedule: Callable[[], Any], clients: int = 3) -> tuple[Server, list[Send]]:
    server = fresh(schedule, clients)
    server.start()
    return server, server.settle(0.0)


def reloaded(folder: Path, server: Server, schedule: Callable[[], Any], clients: int = 3) -> Server:
    """A new server with what the old one wrote to the disk."""
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder, server, Gate(), checkpoint.Extras({}, {}))
    new = fresh(schedule, clients)
    checkpoint.load(folder, new, Gate())
    return new


def answer(send: Send, value: float = 1.0) -> Update:
    assert isinstance(send.payload, FlatTree)
    return Update(send.job, FlatTree(send.payload.schema, torch.full_like(send.payload.flat, value)), 1.0)


def flat(server: Server) -> torch.Tensor:
    assert isinstance(server.state, FlatTree)
    return server.state.flat


def lose_everything(server: Server, jobs: int, reason: str = "timeout") -> int:
    """Fail so many jobs, one instant after the other; how many failed before the server gave up."""
    for lost in range(jobs):
        while not server.inflight:
            assert server.next_timer is not None
            server.wake(server.next_timer)
            server.settle(server.now)
        try:
            server.failed(next(iter(server.inflight)), reason, server.now)
        except TooManyFailures:
            return lost + 1
        server.settle(server.now)
    return jobs


def test_failures_in_a_row_are_counted_across_a_restart(tmp_path: Path) -> None:
    server, _ = begun(FedBuff)
    assert lose_everything(server, MAX_CONSECUTIVE_FAILURES - 5) == MAX_CONSECUTIVE_FAILURES - 5
    restored = reloaded(tmp_path, server, FedBuff)
    for one in (server, restored):
        assert lose_everything(one, MAX_CONSECUTIVE_FAILURES) == 5, "the hundredth failure in a row is the last"


def test_one_answer_ends_a_row_of_failures(tmp_path: Path) -> None:
    server, _ = begun(FedBuff)
    lose_everything(server, MAX_CONSECUTIVE_FAILURES - 1)
    while not server.inflight:
        server.wake(server.next_timer or 0.0)
        server.settle(server.now)
    job = next(iter(server.inflight.values()))
    server.arrived(answer(Send(job, server.base(job.version), 0)), server.now)
    restored = reloaded(tmp_path, server, FedBuff)
    for one in (server, restored):
        assert lose_everything(one, MAX_CONSECUTIVE_FAILURES - 1) == MAX_CONSECUTIVE_FAILURES - 1
        assert lose_everything(one, 1) == 1


def test_clients_that_failed_alike_before_a_restart_count_after_it(tmp_path: Path) -> None:
    server, sends = begun(FedBuff, 6)
    for send in sends[:4]:
        server.failed(send.job.id, f"client error: disk {send.job.id} is full", 0.0)
    restored = reloaded(tmp_path, server, FedBuff, 6)
    for one in (server, restored):
        one.failed(sends[4].job.id, "client error: disk 5 is full", 0.0)  # one is still out
        with pytest.raises(TooManyFailures, match="6 clients failed by the same error"):
            one.failed(sends[5].job.id, "client error: disk 6 is full", 0.0)


def test_a_revoked_update_that_a_schedule_names_later_is_left_out_after_a_restart_too(tmp_path: Path) -> None:
    def schedule() -> FedCompass:
        return FedCompass(initial_mode="group")  # names everybody who came back, whoever left since

    server, sends = begun(schedule)
    server.arrived(answer(sends[0], 100.0), 1.0)
    server.expel(0, "revoked", 1.0)
    server.settle(1.0)
    assert server.revoked_jobs == {sends[0].job.id}
    restored = reloaded(tmp_path, server, schedule)
    for one in (server, restored):
        one.arrived(answer(sends[1], 1.0), 2.0)
        one.arrived(answer(sends[2], 3.0), 2.0)
        assert one.version == 1 and float(one.state["x"][0]) == 2.0
        assert not one.revoked_jobs, "what was named is forgotten"
        row = one.row()
        assert (row["accepted"], row["late"], row["buffered"]) == (2, {"revoked": 1}, 0)


def test_the_pardon_of_a_revoked_client_is_not_lost_with_the_process(tmp_path: Path) -> None:
    """Whoever is revoked begins anew when the operator takes it back, also if the server was killed in between."""
    server, sends = begun(FedBuff)
    gate, journal = Gate(suspend_after=1), Journal(tmp_path)
    heard = Journaled(fresh(FedBuff), journal)
    heard.start()
    heard.settle(0.0)
    gate.record_violation(0, "norm", 1.0)
    heard.reject(sends[0].job, "norm", "too long", 1.0)
    heard.left(0, 1.0)
    assert 0 in gate.suspended
    heard.expel(0, "revoked", 2.0)
    gate.clear_violations(0)
    after = Gate(suspend_after=1)
    replay(journal, 0, server := fresh(FedBuff), after, lambda row, sends: None)
    assert after.dump() == gate.dump() and 0 not in after.suspended
    assert server.row() == heard.server.row()
    journal.close()


def test_who_is_there_and_what_a_client_said_of_itself_outlast_the_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    heard = Journaled(fresh(FedBuff), journal)
    heard.profile_update(1, {"sec_per_step": 9.0})
    heard.exclude({2})
    heard.start()
    jobs = [send.job for send in heard.settle(0.0)]
    sent: list[Send] = []
    replay(journal, 0, server := fresh(FedBuff), Gate(), lambda row, sends: sent.extend(sends))
    assert server.roster[1].sec_per_step == 9.0 and fresh(FedBuff).roster[1].sec_per_step == 1.0
    assert server.excluded == {2} and [send.job for send in sent] == jobs and [job.client for job in jobs] == [0, 1]
    journal.close()


def test_old_models_are_released_and_a_long_run_does_not_grow() -> None:
    server, sends = begun(lambda: FedBuff(size=1))
    slow, first = sends[0], weakref.ref(flat(server))
    queue, past, sizes = sends[1:], [], []
    for step in range(300):
        send, now = queue.pop(0), 1.0 + step
        server.arrived(answer(send, 1e-3), now)
        del send
        queue += server.settle(now)
        past.append(weakref.ref(flat(server)))
        assert set(server.bases) == {0, server.version, *(job.version for job in server.inflight.values())}
        if step in (100, 299):
            gc.collect()
            sizes.append(sum(1 for x in gc.get_objects() if type(x) is torch.Tensor and x.shape[-1:] == (DIM,)))
    del queue[:]
    assert server.version == 300 and sizes[1] <= sizes[0]
    alive = [version for version, ref in enumerate(past, 1) if ref() is not None]
    assert alive and min(alive) >= 298, "the newest two are all that is left"
    assert first() is not None, "somebody still works on the first"
    server.failed(slow.job.id, "timeout", 301.0)
    del sends, slow
    gc.collect()
    assert first() is None and 0 not in server.bases


def test_a_client_that_comes_back_is_not_taken_for_its_earlier_device(tmp_path: Path) -> None:
    """An answer that was on its way says nothing of what the device that joined since holds."""
    server, sends = begun(lambda: FedBuff(size=3))
    server.left(0, 1.0)
    server.joined(0, 2.0)  # on another device, while the first one's answer is on its way
    restored = reloaded(tmp_path, server, lambda: FedBuff(size=3))
    for one in (server, restored):
        one.arrived(answer(sends[0]), 3.0)
        one.arrived(answer(sends[1]), 3.0)
        second = {send.job.client: send for send in one.settle(3.0)}
        assert second[0].job.held == -1, "its present device has answered nothing yet"
        assert second[1].job.held == 0
        one.arrived(answer(second[0]), 4.0)
        (third,) = one.settle(4.0)
        assert (third.job.client, third.job.held) == (0, second[0].job.version)
        one.failed(third.job.id, "timeout", 5.0)
        one.wake(6.0)
        (fourth,) = one.settle(6.0)
        assert (fourth.job.client, fourth.job.held) == (0, -1), "it may have got the last model or not"


def test_what_a_client_holds_outlasts_a_restart_and_not_its_leave(tmp_path: Path) -> None:
    server, sends = begun(lambda: FedBuff(size=3))
    server.arrived(answer(sends[0]), 1.0)
    (second,) = server.settle(1.0)
    assert second.job.held == 0
    server.arrived(answer(second), 2.0)
    server.left(0, 2.0)
    assert server.settle(2.0) == []
    restored = reloaded(tmp_path, server, lambda: FedBuff(size=3))
    for one in (server, restored):
        one.joined(0, 3.0)
        (third,) = one.settle(3.0)
        assert (third.job.client, third.job.held) == (0, -1)


def test_a_copy_of_an_update_that_waited_when_the_server_was_saved_is_found(tmp_path: Path) -> None:
    server, sends = begun(FedBuff)
    gate = Gate(reject_duplicates=True, max_weight=1.0)

    def sent(send: Send) -> Answer:
        data = wire_format.encode(answer(send).delta)
        return Answer(send.job.id, send.job.client, send.job.version, 1.0, {}, data, "", "")

    def judged(one: Server, by: Gate, send: Send) -> Update | Rejected:
        return by.check(sent(send), send.job.client, one.inflight, one.expects(send.job), one.roster, one.undecided)

    first = judged(server, gate, sends[0])
    assert isinstance(first, Update)
    server.arrived(first, 1.0)
    checkpoint.save(tmp_path, server, gate, checkpoint.Extras({}, {}))
    new, later = fresh(FedBuff), Gate(reject_duplicates=True, max_weight=1.0)
    checkpoint.load(tmp_path, new, later)
    for one, by in ((server, gate), (new, later)):
        refused = judged(one, by, sends[1])
        assert isinstance(refused, Rejected) and refused.code == "clone"
