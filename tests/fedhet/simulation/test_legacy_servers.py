"""Flower's legacy servers, which send from one thread per client, in virtual time."""

import json
import logging
import threading

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.simulation.flower_app import simulate
from fedhet.simulation.legacy_servers import TooFewNodes
from tests.fedhet.simulation import legacy_flower_app as legacy


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("flwr").setLevel(logging.ERROR)


def fleet(n=5, **fields):
    """Client i takes 0.1 (1 + i) seconds a step: 10 steps of training, 3 of evaluation."""
    return Clients.from_profiles([Profile(sec_per_step=0.1 * (1 + i), **fields) for i in range(n)])


def run(server, client=legacy.client, clients=None, **options):
    legacy.history.clear()
    before = threading.active_count()
    summary = simulate(server, client, clients or fleet(), **options)
    assert threading.active_count() == before, "no thread is left behind"
    return summary, list(legacy.history)


@pytest.mark.parametrize("name", ["fedavg", "sampled", "fedprox", "fedadam", "krum", "median", "asking", "own"])
def test_history_and_timeline_are_the_same_for_any_number_of_workers(name, tmp_path):
    runs = []
    for workers in (0, 1, 2) if name == "fedavg" else (0, 2):
        events = tmp_path / f"{workers}.jsonl"
        summary, history = run(getattr(legacy, name), workers=workers, seed=3, events=events)
        runs.append((summary, history, events.read_text()))
    assert all(other == runs[0] for other in runs[1:])
    assert runs[0][0].failed == 0


def test_the_clients_of_a_round_are_under_way_at_once(tmp_path):
    summary, history = run(legacy.fedavg, clients=fleet(40), events=tmp_path / "events.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [row["t"] for row in rows[:40]] == [0.0] * 40, "none waits for one of the machine's processors"
    assert summary.virtual_seconds == pytest.approx(2 * (10 + 3) * 0.1 * 40)
    assert sorted(client for _, client in history[1][1]) == list(range(40))


def test_the_weighted_mean_is_its_closed_form():
    _, history = run(legacy.fedavg, seed=1)
    weights = np.arange(10, 15) / 60
    first, second = legacy.numbers()[:2]
    plain = float(weights @ (np.arange(5) / 3))
    assert np.all(first == 0) and np.all(second > plain) and np.all(second < plain + 1), "plus noise of [0, 1)"
    assert [row[0] for row in history] == ["central", "fit", "central", "evaluate", "fit", "central", "evaluate"]


def test_a_client_that_raises_is_a_failure_with_a_reason_and_the_others_go_on(caplog):
    summary, history = run(legacy.fedavg, legacy.broken)
    assert summary.failed == 2
    assert [sorted(client for _, client in row[1]) for row in history if row[0] == "fit"] == [[0, 1, 3, 4]] * 2
    assert [r.getMessage() for r in caplog.records if r.name == "fedhet.simulation.flower_app"] == [
        "client 2 failed at a train message: ValueError: no data here"
    ]


def test_a_rounds_timeout_is_kept_in_virtual_time():
    summary, history = run(legacy.impatient)
    # training takes 1, 2, 3, 4 and 5 seconds, evaluating 0.3 to 1.5; clients 3 and 4 are still at it when they are
    # asked to evaluate, and are late with that, too
    fits = [sorted(client for _, client in row[1]) for row in history if row[0] == "fit"]
    assert fits == [[0, 1, 2]] * 2
    assert summary.virtual_seconds < 4 * 3.0 + 1e-6


def test_a_client_that_never_answers_is_a_failure_when_its_message_is_too_old():
    clients = Clients.from_profiles(
        [Profile(sec_per_step=0.1, dropout_prob=float(i == 0), silent=True) for i in range(3)]
    )
    summary, history = run(legacy.fedavg, clients=clients)
    assert [len(row[1]) for row in history if row[0] == "fit"] == [2, 2]
    assert summary.virtual_seconds > 12 * 3600, "Flower's messages live for twelve hours"


def test_threads_that_are_limited_take_their_turns():
    one_by_one, _ = run(legacy.own, clients=fleet(4))
    # two threads for clients of 1, 2, 3, 4 seconds in some order: never as fast as all at once
    assert one_by_one.virtual_seconds > 2 * (10 + 3) * 0.4 + 1


def test_more_clients_than_there_are_cannot_be_waited_for():
    with pytest.raises(TooFewNodes, match=r"waits for 9 nodes, there are 5.*--nodes"):
        run(legacy.greedy)


def test_an_error_of_the_strategy_ends_the_run_and_its_threads():
    class Bug(legacy.FedAvg):
        def aggregate_fit(self, *args):
            raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        simulate(legacy.app(Bug), legacy.client, fleet())
    assert not [t for t in threading.enumerate() if t.name.startswith("fedhet-crew")]


def test_threads_of_another_kind_get_an_error_with_a_remedy():
    app, errors = ServerApp(), []

    @app.main()
    def main(grid, context):
        gate = threading.Barrier(2)

        class Slow(list):
            def __iter__(self):
                gate.wait(10)
                gate.wait(10)
                return super().__iter__()

        other = threading.Thread(target=grid.send_and_receive, args=(Slow(),))
        other.start()
        gate.wait(10)
        try:
            grid.send_and_receive([Message(RecordDict(), 2, "train")])
        except RuntimeError as error:
            errors.append(str(error))
        gate.wait(10)
        other.join(10)

    simulate(app, legacy.client, fleet())
    assert len(errors) == 1 and "one send_and_receive" in errors[0]


def test_a_server_that_waits_for_nodes_gets_an_error_if_no_more_will_come(caplog):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        for _ in range(50):
            if len(list(grid.get_node_ids())) > 5:
                break

    simulate(app, legacy.client, fleet())
    assert [
        "than the 5 there are" in r.getMessage() for r in caplog.records if r.name == "fedhet.simulation.flower_app"
    ] == [True]


def test_a_server_that_polls_sees_time_pass():
    app, seen = ServerApp(), []

    @app.main()
    def main(grid, context):
        ids = list(grid.push_messages([Message(RecordDict(), node, "query") for node in grid.get_node_ids()]))
        while ids:
            for reply in grid.pull_messages(ids):
                ids.remove(reply.metadata.reply_to_message_id)
                seen.append((grid.now(), reply.metadata.reply_to_message_id))

    simulate(app, legacy.client, fleet(latency_s=0.5))
    assert len(seen) == 5 and seen == sorted(seen)
