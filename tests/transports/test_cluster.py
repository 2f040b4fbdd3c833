"""Virtual time on a Ray cluster of two nodes: the same bits as in one process, also after failures."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedhet.config import composition
from fedhet.flower.compat import ErrorCode, claim_identity
from fedhet.flower.execution import Outcome
from fedhet.runs.experiment import Experiment

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.transport


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    """A cluster of two nodes with one processor each, all on this machine, and this process connected to it."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    both = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    both.add_node(**small)
    ray.init(address=both.address, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
    both.shutdown()


@pytest.fixture
def app() -> Callable[[], Any]:
    """Makes an app that says where it ran, keeps a total in the context, and dies if told to. Nested, because workers
    cannot import this file."""

    def make() -> ClientApp:
        made = ClientApp()

        @made.train()
        def train(message: Message, context: Context) -> Message:
            how = message.content.config_records["config"]["how"]
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "raise":
                raise ValueError("told to")
            time.sleep(0.05)  # so that both nodes get work
            x = message.content.array_records["arrays"]["x"].numpy()
            kept = context.state.array_records
            context.state["total"] = ArrayRecord({"x": Array(x + kept["total"]["x"].numpy() if kept else x)})
            where = ConfigRecord({"node": ray.get_runtime_context().get_node_id()})
            content = RecordDict({"arrays": context.state.array_records["total"], "where": where})
            return Message(content, reply_to=message)

        return made

    return make


def task(x: Array, node: int, how: str = "work", state: RecordDict | None = None) -> tuple[Message, Context]:
    claim_identity(1)
    content = RecordDict({"arrays": ArrayRecord({"x": x}), "config": ConfigRecord({"how": how})})
    return Message(content, node, "train"), Context(1, node, {}, state or RecordDict(), {})


def total(outcome: Outcome) -> np.ndarray:
    return outcome.reply.content.array_records["arrays"]["x"].numpy()


def node_of(outcome: Outcome) -> str:
    return str(outcome.reply.content.config_records["where"]["node"])


def test_tasks_reach_both_nodes_and_a_worker_that_dies_fails_its_task_alone(app: Callable[[], Any]) -> None:
    from fedhet.simulation.ray_executor import Cluster

    shared = Array(np.arange(50_000, dtype=np.float64))
    with Cluster(app) as workers:
        met: set[str] = set()
        for n in range(1000, 3000, 2):  # a worker may start half a minute after the other; tasks go to who is there
            for number in (n, n + 1):
                workers.submit(number, number, *task(shared, 20))
            met |= {node_of(workers.result(number)) for number in (n, n + 1)}
            if len(met) == 2:
                break
        for n in range(12):
            workers.submit(n, n, *task(shared, n + 2, {4: "die", 7: "raise"}.get(n, "work")))
        outcomes = [workers.result(n) for n in reversed(range(12))][::-1]
        workers.submit(99, 0, *task(Array(np.ones(50_000)), 2, state=outcomes[0].state))
        again = workers.result(99)
        assert workers.deaths >= 1, "on a busy machine Ray may lose one more as it starts, before it has a task"
        with pytest.raises(KeyError):
            workers.result(99)
    assert outcomes[4].reply.error.code == ErrorCode.CLIENT_APP_CRASHED and "died" in outcomes[4].reply.error.reason
    assert outcomes[7].reply.error.reason == "ValueError: told to"
    fine = [o for n, o in enumerate(outcomes) if n not in (4, 7)]
    assert all(np.array_equal(total(o), np.arange(50_000)) for o in fine)
    assert np.array_equal(total(again), np.arange(50_000) + 1)
    assert {node_of(o) for o in fine} == met and len(met) == 2


def test_a_worker_that_is_stopped_is_given_up(app: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from fedhet.simulation.ray_executor import Cluster
    from fedhet.system import process_liveness

    monkeypatch.setattr(process_liveness, "LOOK_S", 0.1)
    monkeypatch.setattr(process_liveness, "PATIENCE_S", 1.0)
    x = Array(np.ones(3))
    with Cluster(app, workers=1) as workers:
        workers.submit(0, 0, *task(x, 2, "stop"))
        workers.submit(1, 1, *task(x, 3))
        stopped, well = workers.result(0), workers.result(1)
    assert "died (it computed nothing for 1 seconds)" in stopped.reply.error.reason
    assert np.array_equal(total(well), np.ones(3))


def test_a_cluster_gives_the_weights_and_events_of_this_process(tmp_path: Path) -> None:
    """Asynchronous, and clients keep control variates in their states."""
    given = [
        "strategy=scaffold", "schedule=fedbuff", "schedule.size=2", "fleet=exponential", "fleet.clients=6",
        "partition=iid", "stop.versions=6", "budget.epochs=null", "budget.steps=2", "workers=0",
    ]  # fmt: skip

    def row(*more: str) -> dict[str, Any]:
        cfg = composition.resolved(composition.compose([*given, *more]))
        return dict(Experiment.of(cfg).run(tmp_path / str(len(more))).row)

    here, there = row(), row("transport=cluster")
    assert there["transport"] == "cluster"
    for key in ("weights_sha256", "events_sha256", "updates", "bytes_up", "accuracy"):
        assert there[key] == here[key], key


def test_an_address_where_nothing_listens_is_an_error_at_once() -> None:
    from fedhet.simulation.ray_executor import reachable

    with pytest.raises(ConnectionError, match=r"no Ray cluster at 127\.0\.0\.1:1: "):
        reachable("127.0.0.1:1")
    with pytest.raises(ConnectionError, match="no Ray cluster at here:there: "):
        reachable("here:there")
