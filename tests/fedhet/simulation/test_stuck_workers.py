"""Workers that die, stop or hang, each at the worst moment."""

import contextlib
import os
import select
import signal
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedhet.flower.compat import ErrorCode, claim_identity
from fedhet.simulation.worker_pool import Pool
from fedhet.system import process_liveness

app = ClientApp()


@app.train()
def train(message, context):
    """Answer with as many bytes as told, outside of the shared memory; misbehave if told to."""
    config = message.content["config"]
    if config["how"] == "wait":
        time.sleep(600)
    if config["how"] == "leave a child":
        child = os.fork()
        if child == 0:
            time.sleep(600)
        with open(f"{os.environ['FEDHET_TEST_DIR']}/child", "w") as file:
            file.write(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    content = {
        "m": MetricRecord({"node": message.metadata.dst_node_id}),
        "c": ConfigRecord({"x": "." * config["size"]}),
    }
    return Message(RecordDict(content), reply_to=message)


@pytest.fixture(autouse=True)
def soon(monkeypatch, tmp_path):
    """Workers are given up soon."""
    monkeypatch.setattr(process_liveness, "LOOK_S", 0.1)
    monkeypatch.setattr(process_liveness, "PATIENCE_S", 1.0)
    monkeypatch.setattr(process_liveness, "GRACE_S", 0.5)
    monkeypatch.setenv("FEDHET_TEST_DIR", str(tmp_path))


@pytest.fixture
def pool():
    with Pool(app, 1) as one:
        yield one


def submit(pool, number, how="work", size=1, carried=1):
    claim_identity(1)
    content = {"config": ConfigRecord({"how": how, "size": size, "more": "." * carried})}
    content["arrays"] = ArrayRecord({"x": Array(np.ones(3))})
    pool.submit(
        number, number, Message(RecordDict(content), number + 2, "train"), Context(1, number + 2, {}, RecordDict(), {})
    )


def signalled(pool, number):
    """Send the worker a signal and wait until it has arrived."""
    pid = pool._workers[0].process.pid
    os.kill(pid, number)
    os.waitid(os.P_PID, pid, (os.WEXITED if number == signal.SIGKILL else os.WSTOPPED) | os.WNOWAIT)


@contextlib.contextmanager
def answering(pool):
    """The worker begins to answer what is submitted in here, of which the pool has not heard anything after."""
    signalled(pool, signal.SIGSTOP)
    yield
    os.kill(pool._workers[0].process.pid, signal.SIGCONT)
    assert select.select([pool._workers[0].line], [], [], 60.0)[0]


def failed(outcome, why):
    assert outcome.reply.error.code == ErrorCode.CLIENT_APP_CRASHED and why in outcome.reply.error.reason
    return True


def well(outcome, number):
    return outcome.reply.content["m"]["node"] == number + 2


@pytest.mark.parametrize("carried", [1, 5_000_000])
def test_a_worker_that_is_stopped_is_given_up_even_with_a_full_pipe(pool, carried):
    signalled(pool, signal.SIGSTOP)
    for number in range(3):
        submit(pool, number, carried=carried)
    assert failed(pool.result(0), "worker 0 died (it computed nothing for 1 seconds)")
    assert well(pool.result(1), 1) and well(pool.result(2), 2) and pool.deaths == 1


def test_a_worker_that_waits_for_ever_is_given_up_and_no_other(pool):
    submit(pool, 0, "wait")
    submit(pool, 1)
    assert well(pool.result(1), 1) and failed(pool.result(0), "computed nothing") and pool.deaths == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_may_end_in_the_middle_of_an_answer(pool, number):
    with answering(pool):
        submit(pool, 0, size=20_000_000)
        submit(pool, 1)
    signalled(pool, number)
    assert failed(pool.result(0), "signal 9" if number == signal.SIGKILL else "computed nothing")
    assert well(pool.result(1), 1)


def test_pipes_that_are_full_both_ways_get_empty(pool):
    for number in range(4):
        submit(pool, number, size=5_000_000, carried=5_000_000)
    assert all(well(pool.result(number), number) for number in range(4)) and not pool.deaths


def test_a_worker_whose_pipe_its_child_holds_is_seen_to_be_dead(pool, monkeypatch, tmp_path):
    monkeypatch.setattr(process_liveness, "PATIENCE_S", 1e9)
    submit(pool, 0, "leave a child")
    submit(pool, 1)
    assert failed(pool.result(0), "signal 9") and well(pool.result(1), 1)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_what_a_worker_had_answered_before_it_died_counts(pool):
    with answering(pool):
        submit(pool, 0)
        submit(pool, 1, "wait")
    signalled(pool, signal.SIGKILL)
    submit(pool, 2)
    assert well(pool.result(0), 0) and failed(pool.result(1), "signal 9") and well(pool.result(2), 2)


def test_stopped_workers_do_not_keep_a_pool_from_ending():
    with Pool(app, 1) as pool:
        submit(pool, 0)
        signalled(pool, signal.SIGSTOP)
        process = pool._workers[0].process
    assert process.exitcode == -signal.SIGKILL
