"""The full engine, on worlds with a known result and on digits: equalities, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

from clients.work.scaffold import Scaffold
from clients.work.sgd import Sgd
from fedhet.bases import AbstractTransform
from fedhet.engine.method import Method, Misfit
from fedhet.engine.stopping import Diverged, Limits, TooManyFailures
from fedhet.numerics import tree
from fedhet.population.profile import Jitter, Profile
from fedhet.population.roster import Clients
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.simulation.virtual_grid import Stalled
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.sync import Sync
from strategies.spaces.control import ControlVariates
from strategies.spaces.full import Full

A, B = [1.0, 4.0, 2.0], [1.0, -1.0, 0.5]
N = [10, 20, 30]


def method(schedule=None, steps=5, rule=None, space=None, work=None, **layers):
    return Method(
        schedule or Sync(),
        space or Full(),
        rule or Mean(),
        work or Sgd(lr=0.1),
        Fixed(steps=steps),
        name="test",
        **layers,
    )


def experiment(m, world=None, versions=10, workers=0, clients=None, **kw):
    world = world or QuadraticWorld(A, B, N)
    return Experiment(m, clients or equal_clients(world), world, Limits(versions=versions), workers=workers, **kw)


def final(result):
    from safetensors.torch import load_file

    return load_file(result.path / "model.safetensors")["x"].numpy()


def unlike(world):
    profiles = [
        Profile(
            sec_per_step=0.1 * (1 + i),
            compute_jitter=Jitter("normal", 0.1),
            uplink_bytes_per_s=1e3 * (1 + i),
            latency_s=0.01 * i,
            availability=((0, 5), (8, 20)) if i == 2 else (),
            availability_period_s=20.0 if i == 2 else None,
            dropout_prob=0.2 if i == 1 else 0.0,
        )
        for i in range(world.clients)
    ]
    return Clients.from_profiles(profiles).with_examples(world.examples())


def test_fedavg_is_the_closed_form(tmp_path):
    """x <- sum_i p_i (b_i + (1 - lr a_i)^K (x - b_i)), in float64, round after round."""
    a, b, p, x = np.array(A), np.array(B), np.array(N) / sum(N), 0.0
    for _ in range(10):
        x = float(p @ (b + (1 - 0.1 * a) ** 5 * (x - b)))
    result = experiment(method()).run(tmp_path / "run")
    assert abs(final(result)[0] - x) < 1e-12
    assert result.row["versions"] == 10 and result.row["virtual_seconds"] == 50.0


def test_fedbuff_of_all_clients_with_equal_speeds_is_fedavg_bit_for_bit(tmp_path):
    rows = [
        experiment(m, QuadraticWorld(A, B, [10] * 3)).run(tmp_path / m.name).row
        for m in (
            Method(Sync(), Full(), Mean(), Sgd(lr=0.1), Fixed(steps=5), name="sync"),
            Method(FedBuff(size=3), Full(), Mean(over="count"), Sgd(lr=0.1), Fixed(steps=5), name="fedbuff"),
        )
    ]
    assert rows[0]["weights_sha256"] == rows[1]["weights_sha256"]
    assert rows[0]["virtual_seconds"] == rows[1]["virtual_seconds"]


def test_a_layer_needs_no_tuple_around_it_and_what_is_none_is_a_misfit(tmp_path):
    from strategies.optimizers.sgd import Sgd as ServerSgd

    bare, wrapped = (experiment(method(optimizer=one)).run(tmp_path / str(k)) for k, one in
                     enumerate((ServerSgd(lr=0.5), (ServerSgd(lr=0.5),))))  # fmt: skip
    assert bare.row["weights_sha256"] == wrapped.row["weights_sha256"]
    with pytest.raises(Misfit, match="optimizer: float lacks a transform hook"):
        method(optimizer=0.5)


def test_scaffold_reaches_the_optimum_where_fedavg_stalls(tmp_path):
    world = QuadraticWorld([1.0, 4.0], [1.0, -1.0])
    plain = experiment(method(steps=20), world, versions=80).run(tmp_path / "fedavg")
    m = method(steps=20, rule=Mean(uniform=True), space=ControlVariates(2), work=Scaffold(lr=0.1))
    control = experiment(m, world, versions=80).run(tmp_path / "scaffold")
    assert abs(final(plain)[0] + 0.064705) < 1e-6
    assert abs(final(control)[0] + 0.6) < 1e-12


@pytest.mark.parametrize("schedule", [lambda: Sync(), lambda: Sync(per_round=4), lambda: FedBuff(size=2)])
def test_any_number_of_workers_gives_the_same_bits(tmp_path, schedule):
    rng = np.random.default_rng(0)
    world = QuadraticWorld(rng.uniform(0.5, 2, 8), rng.normal(size=(8, 50)))
    rows = [
        experiment(method(schedule()), world, 12, workers, unlike(world)).run(tmp_path / str(workers)).row
        for workers in (0, 1, 2, 4)
    ]
    assert len({r["weights_sha256"] for r in rows}) == 1
    assert len({r["events_sha256"] for r in rows}) == 1
    assert rows[0]["updates"]["failed"], "the fleet is meant to lose some jobs"


def test_stateful_clients_give_the_same_bits_on_workers(tmp_path):
    rng = np.random.default_rng(1)
    world = QuadraticWorld(rng.uniform(0.5, 2, 4), rng.normal(size=(4, 20_000)))
    rows = []
    for workers in (0, 2):
        m = method(steps=2, rule=Mean(uniform=True), space=ControlVariates(4), work=Scaffold(lr=0.1))
        rows.append(experiment(m, world, 4, workers).run(tmp_path / str(workers)).row)
    assert rows[0]["weights_sha256"] == rows[1]["weights_sha256"]


def test_every_dispatched_job_is_in_exactly_one_place_of_the_ledger(tmp_path):
    world = QuadraticWorld([1.0] * 8, np.arange(8.0))
    result = experiment(method(FedBuff(size=3)), world, 15, clients=unlike(world)).run(tmp_path / "run")
    u = result.row["updates"]
    parts = [
        u["accepted"],
        u["buffered"],
        u["unfinished"],
        *(sum(u[k].values()) for k in ("late", "rejected", "failed")),
    ]
    assert sum(parts) == u["dispatched"]
    rows = read_rows(tmp_path / "run" / "events.jsonl")
    combined = [j for r in rows if r["event"] == "combined" for j in r["jobs"]]
    assert len(combined) == len(set(combined)) == u["accepted"]
    assert [r["t"] for r in rows] == sorted(r["t"] for r in rows)
    for row in rows:
        if row["event"] == "combined":
            assert all(s >= 0 for s in row["staleness"])


def raising(times):
    class Bad(Sgd):
        def run(self, model, data, job, memory):
            if job.client == 1 and job.turn in times:
                raise RuntimeError("disk full")
            return super().run(model, data, job, memory)

    return Bad(lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_client_that_raises_is_a_failed_job_and_the_run_goes_on(tmp_path, workers):
    result = experiment(method(work=raising({1, 2})), workers=workers, versions=5).run(tmp_path / "run")
    assert result.row["updates"]["failed"] == {"client error": 2}
    rows = [r for r in read_rows(tmp_path / "run" / "events.jsonl") if r["event"] == "failed"]
    assert rows[0]["client"] == 1 and rows[0]["reason"] == "client error: RuntimeError: disk full"


def test_a_worker_that_dies_is_a_failed_job_and_the_run_goes_on(tmp_path):
    class Deadly(Sgd):
        def run(self, model, data, job, memory):
            if job.client == 1 and job.turn == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(model, data, job, memory)

    result = experiment(method(work=Deadly(lr=0.1)), workers=2, versions=5).run(tmp_path / "run")
    assert result.row["updates"]["failed"] == {"client crashed": 1} and result.row["versions"] == 5
    row = next(r for r in read_rows(tmp_path / "run" / "events.jsonl") if r["event"] == "failed")
    assert row["client"] == 1 and "signal 9" in row["reason"]


def silent(world, **kw):
    return Clients.from_profiles(
        [Profile(sec_per_step=1.0, dropout_prob=float(i == 0), silent=i == 0, **kw) for i in range(world.clients)]
    ).with_examples(world.examples())


def test_a_client_that_never_answers_is_an_error_not_a_hang(tmp_path):
    world = QuadraticWorld(A, B, N)
    with pytest.raises(Stalled, match="never answer"):
        experiment(method(), world, clients=silent(world)).run(tmp_path / "run")


def test_with_a_timeout_the_others_go_on(tmp_path):
    world = QuadraticWorld(A, B, N)
    result = experiment(method(), world, 4, clients=silent(world), timeout=60.0).run(tmp_path / "run")
    assert result.row["updates"]["failed"] == {"timeout": 4} and result.row["versions"] == 4


def test_an_answer_after_its_timeout_is_not_used_twice(tmp_path):
    world = QuadraticWorld(A, B, N)
    clients = Clients.from_profiles([Profile(sec_per_step=s) for s in (1.0, 1.0, 30.0)]).with_examples(world.examples())
    result = experiment(method(), world, 6, clients=clients, timeout=20.0).run(tmp_path / "run")
    assert result.row["updates"]["failed"] == {"timeout": 6}
    assert result.row["updates"]["accepted"] == 12


def test_a_run_without_online_clients_ends_with_a_reason(tmp_path):
    world = QuadraticWorld(A, B, N)
    clients = equal_clients(world, availability=((0.0, 12.0),))
    with pytest.raises(Stalled):
        experiment(method(), world, 50, clients=clients).run(tmp_path / "run")


def test_clients_that_all_diverge_end_the_run_with_the_cause(tmp_path):
    with pytest.raises(TooManyFailures, match=r"clients failed by the same error.*diverged"):
        experiment(method(work=Sgd(lr=60.0), steps=200), versions=50).run(tmp_path / "run")


@dataclass(frozen=True)
class Exploding(AbstractTransform):
    def finish(self, delta, view, memory):
        return tree.scale(delta, float("inf"))


def test_a_combination_that_is_not_finite_is_never_merged(tmp_path):
    with pytest.raises(Diverged, match=r"version 1.*not finite"):
        experiment(method(optimizer=(Exploding(),))).run(tmp_path / "run")


@pytest.mark.parametrize("limits", [Limits(seconds=23.0), Limits(tasks=8), Limits(versions=2)])
def test_limits_end_a_run_where_they_say(tmp_path, limits):
    e = experiment(method())
    row = Experiment(e.method, e.clients, e.world, limits).run(tmp_path / "run").row
    got = {"seconds": row["virtual_seconds"], "tasks": row["client_tasks"], "versions": row["versions"]}
    for name in got:
        if getattr(limits, name) is not None:
            assert got[name] == getattr(limits, name)


CHILD = """
import sys
sys.path[:0] = {path!r}
from tests_engine_module import *
world = QuadraticWorld([1.0] * 8, np.arange(8 * 400.0).reshape(8, 400))
e = experiment(method(FedBuff(size=2), work=Sgd(lr=0.001)), world, 150, {workers}, unlike(world), checkpoint_every=0.05)
print(json.dumps(e.run({folder!r}, resume={resume}).row))
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """SIGKILL at several moments, each time resumed by another process with another number of workers."""
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    shutil.copy(__file__, tmp_path / "tests_engine_module.py")
    path = [root, str(tmp_path)]

    def start(folder, workers, resume):
        code = CHILD.format(path=path, workers=workers, folder=str(folder), resume=resume)
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finished(process):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-2000:]
        return json.loads(out.splitlines()[-1])

    whole = finished(start(tmp_path / "whole", 1, False))
    broken, kills = tmp_path / "broken", 0
    for round_, rows in enumerate((1, 250, 900)):
        process = start(broken, round_ % 2, round_ > 0)
        events = broken / "events.jsonl"
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            checkpoint = broken / "checkpoint" / "current"
            if checkpoint.exists() and events.exists() and events.read_bytes().count(b"\n") >= rows:
                process.kill()
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
        process.stdout.close()
        process.stderr.close()
    resumed = finished(start(broken, 2, True))
    assert kills >= 2
    for key in ("weights_sha256", "events_sha256", "versions", "virtual_seconds", "updates", "bytes_up", "bytes_down"):
        assert resumed[key] == whole[key], key
    assert (broken / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
