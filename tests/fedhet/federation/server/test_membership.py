"""The view of a ServerApp on a changing federation."""

import pytest

from fedhet.federation.device.join import Data
from fedhet.federation.pki import profile_claim, update_signature
from fedhet.federation.pki.update_signature import Statement
from fedhet.federation.server.membership import Members


@pytest.fixture
def members(door):
    door.federation.registry.clients()
    opened = Members(door.federation.folder)
    yield opened
    opened.close()


def said(device, **changed):
    given = {"run": "r", "node": device.identity.node_id, "task": 1, "version": 2, "schema": b"s" * 32,
             "payload": b"p" * 32, "weight": 3.0, **changed}  # fmt: skip
    return Statement(**given)


def test_members_are_the_active_clients_by_partition_or_number(door, members):
    door.member("plain")
    door.member("part", Data(examples=9, partition=5, partitions=6))
    door.begin("waiting", door.invite("waiting")[1])
    assert {k: m.name for k, m in members.now().items()} == {0: "plain", 5: "part"}
    assert members.now()[5].profile.num_examples == 9
    door.federation.suspend("plain")
    assert list(members.now()) == [5]


def test_a_claim_of_nothing_is_no_claim(door, members):
    device = door.member("a")
    link = {"uplink_bytes_per_s": 0, "downlink_bytes_per_s": 0}
    declared, measured = {"memory_bytes": 0, **link}, {"step_us": 5, "latency_us": 0, **link}
    device.ask("profile", profile_claim.make(device.identity, declared, measured, door.clock()))
    told = members.now()[0].profile
    assert told.memory_bytes == told.uplink_bytes_per_s == told.downlink_bytes_per_s == float("inf")
    assert told.sec_per_step == 5e-6


def test_a_number_and_a_partition_do_not_collide(door, refused):
    door.member("zero")
    _, line = door.invite("b")
    refused("E116", door.begin, "b", line, Data(examples=1, partition=0, partitions=2))
    assert door.begin("b", line, Data(examples=1, partition=1, partitions=2))["state"] == "pending"


def test_a_signed_update_counts_until_its_client_is_revoked(door, members, refused):
    a, b = door.member("a"), door.member("b")
    mark = update_signature.sign(a.identity, said(a))
    members.check(0, said(a), mark)
    refused("E205", members.check, 0, said(a, weight=4.0), mark)
    refused("E205", members.check, 1, said(a), mark)
    refused("E205", members.check, 0, said(b), update_signature.sign(b.identity, said(b)))
    door.federation.revoke("a", "stolen")
    refused("E202", members.check, 0, said(a), mark)


def test_observed_speeds_become_a_running_mean_that_the_profile_shows(door, members):
    door.member("a")
    assert members.now()[0].profile.sec_per_step == pytest.approx(0.0009)
    assert members.observe(0, 0.1) == 0.1
    assert members.observe(0, 0.2) == pytest.approx(0.13)
    assert members.now()[0].profile.sec_per_step == pytest.approx(0.13)
    assert door.federation.registry.client("a").observed["finished"] == 2
    assert members.observe(7, 0.1) is None
    with pytest.raises(ValueError, match="positive"):
        members.observe(0, float("nan"))


def test_outside_a_federation_there_are_no_members(tmp_path, monkeypatch, refused):
    monkeypatch.delenv("FEDHET_HOME", raising=False)
    assert Members.here() is None
    monkeypatch.setenv("FEDHET_HOME", str(tmp_path))
    refused("E306", Members.here)
