"""Worker processes: the same replies for any number of them, and a named error for a dead one."""

import os
import signal
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedhet.flower.compat import ErrorCode, claim_identity
from fedhet.flower.job_batch import JobRecord
from fedhet.numerics.shared_memory import Arena
from fedhet.simulation.worker import SLOT_FACTOR, Filler
from fedhet.simulation.worker_pool import UNDONE, Pool

app = ClientApp()


@app.train()
def train(message, context):
    """Add the client's own running total to what it was sent; misbehave if told to."""
    how = message.content["config"]["how"]
    if how == "raise":
        context.state["total"] = ArrayRecord({"x": Array(np.full(3, -1.0))})
        raise ValueError("told to")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(7)
    x = message.content["arrays"]["x"].numpy()
    total = context.state["total"]["x"].numpy() + x if "total" in context.state else x
    context.state["total"] = ArrayRecord({"x": Array(total)})
    return Message(
        RecordDict({"arrays": ArrayRecord({"x": Array(total)}), "m": MetricRecord({"sum": float(total.sum())})}),
        reply_to=message,
    )


def message(x, node=2, how="work"):
    claim_identity(1)
    array = x if isinstance(x, Array) else Array(x)
    return Message(
        RecordDict({"arrays": ArrayRecord({"x": array}), "config": ConfigRecord({"how": how})}), node, "train"
    )


def context(state=None, node=2):
    return Context(1, node, {}, state or RecordDict(), {})


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("size", [3, 200_000])
def test_replies_and_states_of_any_size_are_transferred_unchanged(workers, size):
    with Pool(app, workers) as pool:
        shared = Array(np.arange(size, dtype=np.float64))
        for n in range(6):
            pool.submit(n, n, message(shared, node=n + 2), context(node=n + 2))
        outcomes = [pool.result(n) for n in reversed(range(6))][::-1]
        for n, outcome in enumerate(outcomes):
            assert np.array_equal(outcome.reply.content["arrays"]["x"].numpy(), np.arange(size))
            pool.submit(10 + n, n, message(np.ones(size), node=n + 2), context(outcome.state, n + 2))
        again = [pool.result(10 + n) for n in range(6)]
    for outcome in again:
        assert np.array_equal(outcome.reply.content["arrays"]["x"].numpy(), np.arange(size) + 1)
        assert np.array_equal(outcome.state["total"]["x"].numpy(), np.arange(size) + 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_client_that_raises_keeps_the_state_it_had(workers):
    before = RecordDict({"total": ArrayRecord({"x": Array(np.full(3, 5.0))})})
    with Pool(app, workers) as pool:
        pool.submit(0, 0, message(np.ones(3), how="raise"), context(before))
        outcome = pool.result(0)
    assert outcome.reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert outcome.reply.error.reason == "ValueError: told to"
    assert np.array_equal(outcome.state["total"]["x"].numpy(), np.full(3, 5.0))


@pytest.mark.parametrize(("how", "cause"), [("die", "signal 9"), ("exit", "exit code 7")])
def test_a_worker_that_dies_fails_its_task_alone(how, cause):
    with Pool(app, 2) as pool:
        for n in range(8):
            pool.submit(n, n, message(np.full(3, n), node=n + 2, how=how if n == 3 else "work"), context(node=n + 2))
        outcomes = [pool.result(n) for n in range(8)]
        assert pool.deaths == 1
    assert outcomes[3].reply.error.code == ErrorCode.CLIENT_APP_CRASHED and cause in outcomes[3].reply.error.reason
    for n in set(range(8)) - {3}:
        assert outcomes[n].reply.content["m"]["sum"] == 3 * n


def test_an_idle_worker_that_is_killed_is_replaced():
    with Pool(app, 1) as pool:
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        pool._workers[0].process.join()
        pool.submit(0, 0, message(np.ones(3)), context())
        first = pool.result(0)
        pool.submit(1, 0, message(np.ones(3)), context())
        assert pool.result(1).reply.content["m"]["sum"] == 3
    assert first.reply.has_content() or first.reply.error.code == ErrorCode.CLIENT_APP_CRASHED


def test_many_bulky_messages_do_not_block_each_other():
    """More bytes in the pipes than they hold, both ways: arrays just below the size that goes by shared memory."""
    with Pool(app, 2) as pool:
        xs = {f"x{n}": Array(np.zeros(1900)) for n in range(40)}
        for n in range(30):
            m = message(np.ones(1900), node=n + 2)
            m.content["more"] = ArrayRecord(xs)
            pool.submit(n, n, m, context(node=n + 2))
        assert all(pool.result(n).reply.has_content() for n in range(30))


def test_workers_end_with_the_pool_and_with_the_parent():
    with Pool(app, 2) as pool:
        alive = [w.process.pid for w in pool._workers]
    assert not any(running(p) for p in alive)
    child = os.fork()
    if child == 0:
        orphaned = Pool(app, 2)
        with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
            workers = file.read()
        fd = os.open(f"{os.environ['FEDHET_TEST_DIR']}/workers", os.O_WRONLY | os.O_CREAT)
        os.write(fd, workers.encode())
        os.kill(os.getpid(), signal.SIGKILL)
        del orphaned
    os.waitpid(child, 0)
    with open(f"{os.environ['FEDHET_TEST_DIR']}/workers") as file:
        workers = [int(p) for p in file.read().split()]
    assert len(workers) == 2
    end = time.monotonic() + 60
    while any(running(p) for p in workers) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(running(p) for p in workers)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHET_TEST_DIR", str(tmp_path))


def test_fewer_than_no_workers_is_an_error():
    with pytest.raises(ValueError, match="workers=-1"):
        Pool(app, -1)


class Bundled:
    """Answers several messages at once, unless one is told to raise there; dies with those that are told to."""

    def __call__(self, message, context):
        return app(message, context)

    def record_of(self, message, context):
        if message.metadata.message_type != "train" or context.state:
            return None
        return JobRecord(message.content["config"]["how"], message.content["arrays"]["x"].data)

    def run_batch(self, briefs, rooms):
        hows = [brief.text for brief in briefs]
        if "apart" in hows:
            return None
        if "raise" in hows:
            raise ValueError("told to")
        if "die" in hows:
            os.kill(os.getpid(), signal.SIGKILL)
        if "exit" in hows:
            os._exit(7)
        return [JobRecord("at once", bytes(payload)) for _, payload in briefs]

    def reply(self, message, answer):
        told = Array(message.content["arrays"]["x"].dtype, (3,), "numpy.ndarray", bytes(answer.payload))
        content = {"arrays": ArrayRecord({"x": told}), "m": MetricRecord({"sum": float(told.numpy().sum())})}
        return Message(RecordDict({**content, "config": ConfigRecord({"how": answer.text})}), reply_to=message)


def raw(data):
    """An array that is its bytes, without numpy's own header; of a view, the view."""
    array = Array("float64", (len(data) // 8,), "raw", data if isinstance(data, bytes) else b"")
    array.data = data
    record = ArrayRecord()
    record["x"] = array
    return record


def numbers(record):
    return np.frombuffer(record["x"].data)


class Roomy(Bundled):
    """Writes what it answers into its room, if there is one."""

    def run_batch(self, briefs, rooms):
        answers = []
        for (_, payload), room in zip(briefs, rooms, strict=True):
            x = np.frombuffer(payload)
            mine = np.empty(x.size) if room is None else np.frombuffer(room, count=x.size)
            mine[:] = 2 * x
            answers.append(JobRecord("", memoryview(mine).cast("B")))
        return answers

    def reply(self, message, answer):
        return Message(RecordDict({"arrays": raw(answer.payload)}), reply_to=message)


@pytest.mark.parametrize("size", [10, 50_000])
def test_what_is_written_into_a_room_arrives_whole(size):
    x = np.arange(float(size))
    with Pool(Roomy(), 2) as pool:
        claim_identity(1)
        for n in range(9):
            content = RecordDict({"arrays": raw(((n + 1) * x).tobytes()), "config": ConfigRecord({"how": "work"})})
            pool.submit(n, n, Message(content, n + 2, "train"), context(node=n + 2))
        got = [pool.result(n) for n in range(9)]
    for n, outcome in enumerate(got):
        assert np.array_equal(numbers(outcome.reply.content["arrays"]), 2 * (n + 1) * x) and not outcome.state
        assert outcome.reply.metadata.src_node_id == n + 2


def test_what_lies_in_its_slot_stays_there_and_the_rest_is_laid_behind_the_room():
    arena = Arena(1 << 24)
    arena.take(4096)
    slot = arena.take(SLOT_FACTOR * 100_000)
    fill = Filler(arena, slot)
    assert len(fill.buffer) >= 100_000
    fill.buffer[:5] = b"reply"
    assert fill(fill.buffer[:50_000]) == (slot.at, 50_000)
    at, size = fill(b"other" * 20_000)
    assert at >= slot.at + len(fill.buffer) and size == 100_000 and bytes(arena.view(at, 5)) == b"other"
    assert bytes(fill.buffer[:5]) == b"reply"
    assert fill(bytes(slot.size)) is None, "what does not fit goes another way"
    elsewhere = arena.take(4096)
    copied = fill(arena.view(elsewhere.at, 4096))
    assert slot.at <= copied[0] < slot.at + slot.size, "other slots may be used anew"


def outcomes(pool, hows):
    for n, how in enumerate(hows):
        pool.submit(n, n, message(np.ones(3), node=n + 2, how=how), context(node=n + 2))
    return [pool.result(n) for n in range(len(hows))]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bad", ["raise", "die", "exit", "apart"])
def test_in_a_bundle_each_client_fails_or_succeeds_separately(workers, bad):
    hows = ["work"] * 5 + [bad] + ["work"] * 6
    with Pool(Bundled(), workers) as pool:
        got = outcomes(pool, hows)
        failed = [n for n, outcome in enumerate(got) if outcome.reply.has_error()]
        assert failed == ([] if bad == "apart" else [5])
        at_once = [n for n, o in enumerate(got) if n not in failed and "config" in o.reply.content]
        for n in set(range(12)) - set(failed):
            assert got[n].reply.content["m"]["sum"] == 3.0
            assert ("total" in got[n].state) == (n not in at_once), "a call keeps the client's state"
        assert 0 < len(at_once) < 11
        again = outcomes(pool, ["work"] * 3)
        assert not any(o.reply.has_error() for o in again)


@pytest.mark.parametrize(("how", "why"), [("apart", "asks for messages"), ("raise", "ValueError: told to")])
def test_an_app_that_cannot_use_compact_jobs_is_detected_and_reported(how, why, caplog):
    with Pool(Bundled(), 1) as pool:
        for _ in range(UNDONE):
            assert not caplog.records
            outcomes(pool, [how])
        assert [r.levelname for r in caplog.records] == ["WARNING"] and why in caplog.text
        assert all("total" in o.state for o in outcomes(pool, ["work"] * 4))
        assert len(caplog.records) == 1


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="no such policy on this system")
def test_a_worker_that_is_woken_does_not_push_the_parent_aside():
    with Pool(app, 1) as pool:
        pool.submit(0, 0, message(np.ones(3)), context())
        pool.result(0)
        assert os.sched_getscheduler(pool._workers[0].process.pid) == os.SCHED_BATCH


def test_one_that_raises_does_not_keep_others_from_being_done_at_once():
    with Pool(Bundled(), 1) as pool:
        for _ in range(UNDONE + 2):
            outcomes(pool, ["raise"])
            got = outcomes(pool, ["work"] * 4)
        assert all("config" in o.reply.content for o in got)


class Choosy(Bundled):
    """Does nothing at once that it is told to do apart."""

    def run_batch(self, briefs, rooms):
        return None if "apart" in [brief.text for brief in briefs] else [JobRecord("", b"") for _ in briefs]

    def reply(self, message, answer):
        return Message(RecordDict(), reply_to=message)


def test_what_is_done_again_by_itself_takes_no_more_room_each_time():
    with Pool(Choosy(), 1) as pool:
        taken = []
        for _ in range(4):
            for n in range(6):
                how = "apart" if n < 3 else "work"  # both, so that briefs are not given up
                pool.submit(n, n, message(np.ones(20_000 + n), node=n + 2, how=how), context(node=n + 2))
            whole = ["m" in pool.result(n).reply.content for n in range(6)]
            assert not pool._written and whole[:3] == [True] * 3
            taken.append(pool._arena._top)
        assert len(set(taken)) == 1 and pool._undone < UNDONE


@pytest.mark.parametrize("workers", [0, 2])
def test_clients_with_a_state_are_called_beside_those_without(workers):
    state = RecordDict({"total": ArrayRecord({"x": Array(np.full(3, 5.0))})})
    with Pool(Bundled(), workers) as pool:
        for n in range(12):
            own = RecordDict(dict(state)) if n % 3 == 0 else None
            pool.submit(n, n, message(np.ones(3), node=n + 2), context(own, node=n + 2))
        sums = [pool.result(n).reply.content["m"]["sum"] for n in range(12)]
        assert pool.deaths == 0, "a bundle is of one kind"
    assert sums == [18.0 if n % 3 == 0 else 3.0 for n in range(12)]


def test_a_bundle_is_shared_out_evenly(monkeypatch):
    with Pool(Bundled(), 2) as pool:
        seen = []
        bundle = pool._bundle
        monkeypatch.setattr(pool, "_bundle", lambda most: seen.append(bundle(most)) or seen[-1])
        outcomes(pool, ["work"] * 10)
        assert [len(b) for b in seen] == [3, 3, 2, 2]


def test_nobodys_training_waits_for_what_is_none():
    claim_identity(1)
    with Pool(Bundled(), 1) as pool:
        for n in range(6):
            kind = "query.other" if n == 2 else "train"
            content = RecordDict({"config": ConfigRecord({"how": "work"}), "arrays": raw(bytes(8))})
            pool.submit(n, n, Message(content, n + 2, kind), context(node=n + 2))
        sizes = []
        while pool._queue:
            sizes.append([number for _, number in pool._bundle(8)])
    assert sizes == [[0, 1], [2], [3, 4, 5]]
