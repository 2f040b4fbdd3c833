"""Unchanged Flower apps on the virtual grid, with Flower's strategies and fedhet's fleets."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.simulation.flower_app import simulate
from fedhet.simulation.flower_project import AppError, load_app, parse_run_config

APP = Path(__file__).with_name("plain_flower_app.py")


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("flwr").setLevel(logging.ERROR)


def fleet(n=5, **fields):
    return Clients.from_profiles([Profile(sec_per_step=0.1 * (1 + i), **fields) for i in range(n)])


def server_and_results(name):
    app = load_app(f"{APP}:{name}", ServerApp)
    return app, sys.modules["plain_flower_app"].results


@pytest.mark.parametrize("workers", [0, 2])
def test_flowers_fedavg_is_its_closed_form_and_takes_the_slowest_clients_time(workers):
    server, results = server_and_results("fedavg")
    summary = simulate(server, load_app(f"{APP}:client", ClientApp), fleet(), workers=workers)
    weights = np.array([10, 11, 12, 13, 14]) / 60
    x = 0.0
    for _ in range(3):
        x = float(weights @ (x + 0.5 * (np.arange(5) - x)))
    got, metrics = results["FedAvg"]
    assert np.allclose(got, x, atol=1e-6)
    assert metrics[3]["calls"] == 3, "a client's state lasts from round to round"
    # 10 steps of training and 3 of evaluation at the slowest client's 0.5 s, three rounds
    assert summary.virtual_seconds == pytest.approx(3 * (10 + 3) * 0.5)
    assert summary.messages == 30 and summary.lost == 0


@pytest.mark.parametrize("name", ["fedprox", "fedadam", "krum", "sampled"])
def test_other_strategies_of_flower_run_and_repeat_bit_for_bit(name):
    runs = []
    for workers in (0, 2):
        server, results = server_and_results(name)
        summary = simulate(server, load_app(f"{APP}:client", ClientApp), fleet(), workers=workers, seed=3)
        runs.append((summary, *[v[0].tobytes() for v in results.values()]))
    assert runs[0] == runs[1]


def test_lost_messages_do_not_stop_flowers_loop(tmp_path):
    server, _ = server_and_results("fedavg")
    clients = fleet(6, dropout_prob=0.3)
    summary = simulate(server, load_app(f"{APP}:client", ClientApp), clients, seed=1, events=tmp_path / "events.jsonl")
    assert summary.lost > 0
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(rows) == summary.messages and sum(r["lost"] is not None for r in rows) == summary.lost


def test_run_configuration_reaches_the_app():
    server, results = server_and_results("fedavg")
    simulate(server, load_app(f"{APP}:client", ClientApp), fleet(), run_config=parse_run_config("rounds=1"))
    assert list(results["FedAvg"][1]) == [1]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nothing", "write module:attribute"),
        ("no_such_module_here:app", "no_such_module_here"),
        ("missing.py:app", "no file"),
        (f"{APP}:clint", "has .'client'"),
        (f"{APP}:fedavg", "is no ClientApp"),
    ],
)
def test_an_app_that_is_not_there_says_what_is(spec, why):
    with pytest.raises(AppError, match=why):
        load_app(spec, ClientApp)


def test_bad_run_configuration_is_named():
    with pytest.raises(ValueError, match="rounds"):
        parse_run_config("rounds 3")
