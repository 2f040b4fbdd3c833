"""Combinations with too few updates for the rule: the updates wait for the next one, and the run continues."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from fedhet.config import composition
from fedhet.engine.stopping import TooManyFailures
from fedhet.population.roster import Clients
from fedhet.runs import runner
from fedhet.runs.session import Session

QUICK = ["debug=quick", "fleet.clients=6", "model=softmax", "stop.seconds=null"]
KRUM = [*QUICK, "rule=krum", "rule.f=1", "stop.versions=6"]


def rows(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("schedule", ["fedcompass", "fedfix", "time_window", "fedat"])
def test_a_combination_of_too_few_is_carried_to_the_next(tmp_path, schedule):
    """Krum needs five of six clients; the first combinations of these schedules are of one or a few."""
    given = ["schedule.tiers=1"] if schedule == "fedat" else []
    if schedule in ("fedfix", "time_window"):
        given = ["schedule.window_seconds=0.05"]
    row = runner.run(composition.compose([*KRUM, f"schedule={schedule}", *given]), tmp_path / "run").row
    ledger = row["updates"]
    assert row["versions"] == 6
    assert ledger["dispatched"] == ledger["accepted"] + ledger["buffered"] + ledger["unfinished"] + sum(
        sum(ledger[kind].values()) for kind in ("late", "rejected", "failed")
    )
    combined = [r for r in rows(tmp_path / "run") if r["event"] == "combined"]
    assert all(len(set(r["clients"])) >= 5 for r in combined)
    carried = [r for r in rows(tmp_path / "run") if r.get("kind") == "carried"]
    if schedule != "fedat":
        assert carried and all("Krum needs 5 updates or more" in r["why"] for r in carried)
        assert all(max(Counter(r["clients"]).values()) == 1 for r in combined)  # nobody counts twice by waiting
        assert set(ledger["late"]) <= {"superseded"}


def test_a_round_that_lost_clients_is_not_the_end_of_a_run(tmp_path):
    """Trimming two at either end takes five of the six clients, and every one fails in a third of its jobs."""
    given = ["rule=trimmed_mean", "rule.f=2", "stop.versions=5", "fleet=homogeneous", "fleet.dropout_prob=0.3"]
    result = runner.run(composition.compose([*QUICK, *given]), tmp_path / "run")
    assert result.row["versions"] == 5 and result.row["updates"]["failed"]
    assert any(r.get("kind") == "carried" for r in rows(tmp_path / "run"))


def test_what_is_carried_survives_a_restart(tmp_path, monkeypatch):
    texts = [*KRUM, "schedule=fedcompass", "stop.versions=2", "checkpoint.every_seconds=0.0"]
    whole = runner.run(composition.compose(texts[:-1]), tmp_path / "whole").row
    save = Session.save

    def killed(session):
        save(session)
        if len(session.server.carried) > 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "save", killed)
        runner.run(composition.compose(texts), tmp_path / "broken")
    row = runner.resume(tmp_path / "broken").row
    assert all(row[key] == whole[key] for key in ("weights_sha256", "events_sha256", "updates"))


def test_a_run_in_which_nothing_can_ever_be_combined_ends_with_the_reason(tmp_path):
    """Four of the six clients lose every answer."""
    prepared = runner.prepare(composition.compose([*KRUM, "schedule=fedcompass", "fleet=homogeneous"]))
    experiment = prepared.experiment
    lossy = [replace(profile, dropout_prob=1.0 if n > 1 else 0.0) for n, profile in experiment.clients.items()]
    experiment = replace(experiment, clients=Clients.from_profiles(lossy))
    with pytest.raises(
        TooManyFailures, match=r"nothing could be combined the last 100 times: rule\.f: Krum needs 5 .* are 2"
    ):
        experiment.run(tmp_path / "run")
