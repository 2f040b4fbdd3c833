"""A client that fails every job is reported with its reason, and an error common to all clients ends the run."""

from dataclasses import dataclass

import pytest
from rich.console import Console

from clients.work.sgd import Sgd
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits, TooManyFailures
from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.report import summary_table, write_report
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.runs.session import Session
from fedhet.testing.quadratic import QuadraticWorld
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

MANY = 12


@dataclass(frozen=True)
class Failing(Sgd):
    """Plain steps, but for the jobs that `turns` names of each client; all of them if it says None."""

    turns: tuple = ()

    def run(self, model, data, job, memory):
        turns = dict(self.turns).get(job.client, ())
        if turns is None or job.turn in turns:
            raise ValueError(f"job {job.id} got a batch of 1 sample, shape [1, 32]")
        return super().run(model, data, job, memory)


def experiment(turns, schedule=None, versions=5, **more):
    world = QuadraticWorld([1.0] * MANY, list(range(MANY)))
    profiles = [Profile(sec_per_step=1.0 + i) for i in range(MANY)]
    clients = Clients.from_profiles(profiles).with_examples(world.examples())
    work = Failing(lr=0.1, turns=tuple(turns.items()))
    method = Method(schedule or Sync(), Full(), Mean(), work, Fixed(2), name="t")
    return Experiment(method, clients, world, Limits(versions=versions), **more)


def test_clients_of_which_nothing_arrives_are_named_everywhere(tmp_path, capsys):
    result = experiment({3: None, 4: (0, 1), 5: (2, 3, 4), 6: (3, 4)}).run(tmp_path / "run")
    [told] = result.row["failing"]
    assert told.startswith(
        "clients 3, 5: nothing arrives, all 5 jobs of the first failed, client error: ValueError: job "
    )
    Console(width=300).print(summary_table(result.row))
    assert "clients 3, 5: nothing arrives" in capsys.readouterr().out
    (result.path / "config.yaml").write_text("seed: 0\n")
    write_report(result.path)
    assert "Failing: clients 3, 5: nothing arrives" in (result.path / "report.html").read_text()
    notes = [row for row in read_rows(result.path / "events.jsonl") if row.get("kind") == "failing"]
    assert sorted((row["client"], row["jobs"]) for row in notes) == [(3, 3), (5, 3)]


def test_of_many_the_first_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("fedhet.engine.failures.MAX_REPORTED_CLIENTS", 2)
    [told] = experiment({1: None, 2: None, 3: None, 4: None}).run(tmp_path).row["failing"]
    assert told.startswith("clients 1, 2 and 2 more: nothing arrives")


@pytest.mark.parametrize("schedule", [Sync(), Sync(per_round=6), FedBuff(size=3, concurrency=6)], ids=str)
def test_the_same_error_of_all_clients_ends_the_run_soon(tmp_path, schedule):
    with pytest.raises(
        TooManyFailures, match=r"clients failed by the same error.*nothing has arrived.*batch of 1 sample"
    ):
        experiment(dict.fromkeys(range(MANY)), schedule).run(tmp_path)
    failed = [row for row in read_rows(tmp_path / "events.jsonl") if row["event"] == "failed"]
    assert 5 <= len(failed) <= MANY + 5


@pytest.mark.parametrize("schedule", [Sync(), FedBuff(size=2)], ids=str)
def test_those_who_fail_first_do_not_speak_for_those_who_are_slower(tmp_path, schedule):
    """The ten quickest clients fail before anybody else has answered at all."""
    row = experiment(dict.fromkeys(range(10)), schedule, versions=3).run(tmp_path).row
    assert row["versions"] == 3 and row["failing"][0].startswith(
        "clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9: nothing arrives"
    )


def test_a_lost_connection_is_no_violation(tmp_path):
    world = QuadraticWorld([1.0] * 3, [0.0, 1.0, 2.0])
    lossy = [Profile(sec_per_step=1.0, dropout_prob=p) for p in (0.0, 0.0, 1.0)]
    clients = Clients.from_profiles(lossy).with_examples(world.examples())
    method = Method(Sync(), Full(), Mean(), Sgd(lr=0.1), Fixed(2), name="t")
    row = Experiment(method, clients, world, Limits(versions=4)).run(tmp_path).row
    assert row["updates"]["failed"] == {"dropout": 4} and row["failing"] == []


def test_what_is_known_of_failing_clients_survives_a_checkpoint(tmp_path):
    turns = {3: None, 5: (2, 3, 4)}
    whole = experiment(turns).run(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        save, saves = Session.save, []

        def interrupted(session):
            save(session)
            saves.append(1)
            if len(saves) == 30:
                raise KeyboardInterrupt

        patch.setattr(Session, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment(turns, checkpoint_every=0.0).run(tmp_path / "broken")
    again = experiment(turns).run(tmp_path / "broken", resume=True)
    assert again.row["failing"] == whole.row["failing"] and again.row["events_sha256"] == whole.row["events_sha256"]
