"""A client's aggregation weight is the one the operator approved, whatever it declares afterwards."""

import importlib.util
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhet.cli import main
from fedhet.deployment.notices import Reader
from fedhet.federation.device import join
from fedhet.federation.device.join import Data
from fedhet.federation.server.membership import Members
from fedhet.federation.server.registry import Registry

found = importlib.util.spec_from_file_location("live_members", Path(__file__).with_name("test_live_members.py"))
live_members = importlib.util.module_from_spec(found)
found.loader.exec_module(live_members)
crowd, run, FedBuff = live_members.crowd, live_members.run, live_members.FedBuff


def raise_to(door, name, examples):
    """A device declares another number and tells its server, as `fedhet client profile` does."""
    device = door.device(name)
    device.note(declared={**device.about["declared"], "examples": examples})
    join.update_profile(device, {})


def fedhet(door, *words, code=0):
    done = CliRunner().invoke(main.app, [*map(str, words), "--home", str(door.federation.folder)])
    assert done.exit_code == code, done.output
    return " ".join(done.stdout.split())


@pytest.fixture
def members(door):
    door.member("c0", Data(examples=600))
    made = Members(door.federation.folder, door.clock)
    yield made
    made.close()


def test_a_raise_waits_for_the_operator_and_is_in_the_audit_log(door, members):
    raise_to(door, "c0", 60_000)
    member = members.now()[0]
    assert (member.examples, member.declared_examples, member.profile.num_examples) == (600, 60_000, 600)
    [line] = [r for r in door.federation.audit.rows() if r["action"] == "profile"]
    assert line["detail"]["examples"] == {"old": 600, "new": 60_000, "approved": 600}
    assert "60000 examples (600 approved; the rest: fedhet clients weight c0)" in fedhet(door, "clients", "list")
    assert "counts with 60000 examples; 60000 are approved, 600 were" in fedhet(door, "clients", "weight", "c0")
    assert members.now()[0].examples == 60_000
    line = [r for r in door.federation.audit.rows() if r["action"] == "weigh"][-1]
    assert line["detail"].items() >= {"old": 600, "new": 60_000, "declared": 60_000}.items()
    assert "approved" not in fedhet(door, "clients", "list")


def test_a_lower_weight_counts_at_once_and_its_return_needs_no_approval(door, members):
    raise_to(door, "c0", 100)
    assert members.now()[0].examples == 100
    raise_to(door, "c0", 600)
    assert members.now()[0].examples == 600
    fedhet(door, "clients", "weight", "c0", "--examples", 50)
    assert members.now()[0].examples == 50


def test_only_enrolled_clients_get_a_weight(door, refused):
    door.invite("b")
    refused("E211", door.federation.weigh, "b")
    refused("E210", door.federation.weigh, "nobody")
    fedhet(door, "clients", "weight", "b", code=51)


def test_one_who_declared_nothing_has_nothing_to_raise(door, refused):
    device = door.member("mute")
    raise_to(door, "mute", 10**9)
    members = Members(door.federation.folder, door.clock)
    assert [m.examples for m in members.now().values()] == [0] and device.about["name"] == "mute"
    members.close()


def test_the_command_says_what_a_run_counts_a_client_with(door):
    door.member("mute")
    told = fedhet(door, "clients", "weight", "mute", "--examples", 7)
    assert told.startswith("mute counts with the examples of its part of each run's data: it declares no number")
    assert "(7 now)" in told and "fedhet join --examples" in told
    door.member("c0", Data(examples=600))
    assert "counts with 50 examples of the 600 it declares" in fedhet(door, "clients", "weight", "c0", "--examples", 50)
    assert "declares no more than 600" in fedhet(door, "clients", "weight", "c0", "--examples", 700)
    told = fedhet(door, "clients", "weight", "c0", "--examples", 0)
    assert told == "c0 counts with the examples of its part of each run's data: none of the 600 it declares is approved"


def test_a_registry_from_before_approves_what_was_declared_then(door, members):
    path = door.federation.folder / "registry.db"
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE clients DROP COLUMN approved_examples")
    registry = Registry(path)
    assert registry.client("c0").approved_examples == 600
    registry.close()


def test_in_a_run_a_higher_weight_counts_as_approved_and_is_reported_without_a_violation(
    door, crowd, monkeypatch, tmp_path
):
    """The devices of this run train on 10, 20, 30 and 40 examples; c2 was approved with 5 and says 50 by now."""
    monkeypatch.setattr("fedhet.deployment.membership_monitor.WATCH_INTERVAL_S", 0.0)
    door.federation.weigh("c2", 5)
    door.federation.weigh("c3", 0)  # it counts with its part of the run's data
    row, rows = run(door, monkeypatch, crowd, tmp_path, FedBuff(size=3))
    assert row["updates"]["rejected"] == {} and row["versions"] == 6
    weights = {r["client"]: r["weight"] for r in rows if r["event"] == "arrived"}
    assert weights[2] == 5.0 and weights[0] == 10.0 and weights[3] == 40.0
    assert Reader(tmp_path / "run")() == [
        "c2 counts as 5 examples, not as the 30 that it says it has: more were not approved (fedhet clients weight c2)"
    ]


def test_weights_are_at_most_ten_medians_and_reduced_ones_are_named(door, crowd, monkeypatch, tmp_path):
    monkeypatch.setattr("fedhet.deployment.membership_monitor.WATCH_INTERVAL_S", 0.0)
    for name in ("c0", "c1", "c2"):
        door.federation.weigh(name, 1)
    _, rows = run(door, monkeypatch, crowd, tmp_path, FedBuff(size=3))
    assert {r["weight"] for r in rows if r["event"] == "arrived" and r["client"] == 3} == {10.0}
    [told] = [t for t in Reader(tmp_path / "run")() if t.startswith("c3")]
    assert told.endswith("not as the 40 that it says it has: gate.weight_medians=10 times the median client")
