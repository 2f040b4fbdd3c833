"""A live run follows the registry: membership changes take effect at once."""

import importlib.util
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedhet.deployment.clientapp import signer
from fedhet.deployment.live_run import live
from fedhet.federation.device.join import Data
from fedhet.federation.server.membership import Members
from fedhet.flower.compat import claim_identity
from fedhet.flower.node_directory import NodeDirectory
from fedhet.runs.event_log import read_rows
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedcompass import FedCompass

found = importlib.util.spec_from_file_location("small_grid", Path(__file__).parents[2] / "small_grid.py")
small = importlib.util.module_from_spec(found)
found.loader.exec_module(small)


@pytest.fixture
def crowd(door):
    """Four members with nodes 10 to 13, and what the server sees of them."""
    for number in range(4):
        door.member(f"c{number}", Data(examples=50, partition=number, partitions=4))
        door.federation.registry.set_flower_node(number, str(10 + number))
    members = Members(door.federation.folder, door.clock)
    yield members
    members.close()


class Signing:
    """The clients' app, each node with the identity of its device."""

    def __init__(self, door, monkeypatch, app, wrong=()):
        self.door, self.monkeypatch, self.app, self.wrong = door, monkeypatch, app, wrong

    def __call__(self, message, context):
        number = context.node_config["partition-id"]
        name = f"c{(number + 1) % 4}" if number in self.wrong else f"c{number}"
        self.monkeypatch.setenv("FEDHET_STATE", str(self.door.folder / name))
        signer.cache_clear()
        return self.app(message, context)


def run(door, monkeypatch, members, folder, schedule, versions=6, wrong=(), before_pull=None, wanted=4, **more):
    claim_identity(1)
    e = small.experiment(schedule, versions=versions)
    app = Signing(door, monkeypatch, small.counting_app(e, []), wrong)
    grid = small.SmallGrid(app, small.contexts(folder))
    if before_pull is not None:
        grid.before_pull = before_pull
    result = live(e, folder / "run", grid, wanted=wanted, poll=1e-4, members=members, **more)
    return result.row, read_rows(folder / "run" / "events.jsonl")


def test_every_update_of_a_federation_is_signed_and_one_by_another_is_refused(door, crowd, monkeypatch, tmp_path):
    row, _ = run(door, monkeypatch, crowd, tmp_path, FedBuff(size=3))
    assert row["updates"]["rejected"] == {} and row["versions"] == 6
    row, rows = run(door, monkeypatch, crowd, tmp_path / "b", FedBuff(size=3), wrong={2})
    assert set(row["updates"]["rejected"]) == {"signature"} and row["versions"] == 6
    assert {r["client"] for r in rows if r["event"] == "rejected"} == {2}
    assert 2 not in [c for r in rows if r["event"] == "combined" for c in r["clients"]]


@pytest.mark.parametrize("verb", ["revoke", "suspend"])
def test_who_is_shut_out_loses_its_undecided_updates_and_a_suspended_one_comes_back(
    door, crowd, monkeypatch, tmp_path, verb
):
    pulls = []

    def before_pull():
        pulls.append(1)
        if len(pulls) == 8:
            getattr(door.federation, verb)("c1", "audit")
        elif len(pulls) == 14 and verb == "suspend":
            door.federation.resume("c1")

    monkeypatch.setattr("fedhet.deployment.membership_monitor.WATCH_INTERVAL_S", 0.0)
    row, rows = run(door, monkeypatch, crowd, tmp_path, FedBuff(size=4), versions=12, before_pull=before_pull)
    word = {"revoke": "revoked", "suspend": "suspended"}[verb]
    left = next(n for n, r in enumerate(rows) if r["event"] == "left" and r["client"] == 1)
    joined = [n for n, r in enumerate(rows) if r["event"] == "joined" and r["client"] == 1]
    out = rows[left : joined[0] if joined else None]
    assert not [r for r in out if r["event"] in ("assign", "arrived") and r["client"] == 1]
    assert row["updates"]["failed"].get(word, 0) + row["updates"]["late"].get(word, 0) >= 1
    undecided = {j for r in rows if r["event"] == "dropped" and r["reason"] == word for j in r["jobs"]}
    assert not undecided & {j for r in rows if r["event"] == "combined" for j in r["jobs"]}
    assert bool(joined) == (verb == "suspend")
    if joined:
        assert [r for r in rows[joined[0] :] if r["event"] == "arrived" and r["client"] == 1]
    assert row["versions"] == 12


def test_measured_and_observed_speeds_reach_the_schedule_and_the_list(door, crowd, monkeypatch, tmp_path):
    crowd.observe(3, 0.25)
    schedule = FedCompass(q_min=2, q_max=8)
    run(door, monkeypatch, crowd, tmp_path, schedule, versions=8)
    from fedhet.runs.write_ahead_log import Journal

    told = {r.data["client"]: r.data["fields"] for r in Journal(tmp_path / "run").rows() if r.kind == "profile_update"}
    assert told[0]["sec_per_step"] == pytest.approx(0.0009), "measured when it joined"
    assert told[3]["sec_per_step"] == 0.25, "observed in an earlier run"
    assert told[0]["num_examples"] == 50
    assert set(schedule.groups.speeds) == {0, 1, 2, 3}, "FedCompass knows speeds from answers alone"
    for number in range(4):
        client = door.federation.registry.client(f"c{number}")
        assert client.declared["partition"] == number and client.measured["step_us"] == 900
        assert client.observed["sec_per_step"] > 0 and client.observed["finished"] >= 1


def test_a_revocation_between_two_looks_at_the_registry_does_not_end_the_run(door, crowd, monkeypatch, tmp_path):
    observe = crowd.observe

    def revoked_first(client, seconds):
        if client == 2 and crowd.state(2) == "active":
            door.federation.revoke("c2", "stolen")
        return observe(client, seconds)

    monkeypatch.setattr(crowd, "observe", revoked_first)
    monkeypatch.setattr("fedhet.deployment.membership_monitor.WATCH_INTERVAL_S", 0.0)
    row, rows = run(door, monkeypatch, crowd, tmp_path, FedBuff(size=2), versions=8)
    assert row["versions"] == 8 and crowd.state(2) == "revoked"
    assert [r for r in rows if r["event"] == "left" and r["client"] == 2]


def test_one_that_is_revoked_while_it_comes_in_gets_no_work(door, crowd, monkeypatch, tmp_path):
    nodes, here = crowd.nodes, []

    def online(grid):
        here.extend([12] if grid.pushed > 10 else [])
        return [10, 11, 13, *here[:1]]

    def revoked_after_the_look():
        book = nodes()
        if here and crowd.state(2) == "active":
            door.federation.revoke("c2", "stolen")
        return book

    monkeypatch.setattr(crowd, "nodes", revoked_after_the_look)
    monkeypatch.setattr(small.SmallGrid, "get_node_ids", online)
    monkeypatch.setattr("fedhet.deployment.membership_monitor.WATCH_INTERVAL_S", 0.0)
    row, rows = run(door, monkeypatch, crowd, tmp_path, FedBuff(size=2), versions=12, wanted=3)
    assert row["versions"] == 12 and crowd.state(2) == "revoked"
    assert not [r for r in rows if r["event"] in ("joined", "assign") and r["client"] == 2]


def test_what_a_node_tells_that_is_no_number_is_not_believed(crowd):
    nodes = NodeDirectory(Answering({}), None)
    nodes.config[0] = {"sec_per_step": float("inf"), "num_examples": float("inf"), "max_rank": float("nan")}
    assert nodes.declared_profile(0) == {}
    nodes.config[0] = {"sec_per_step": -1.0, "num_examples": 7.0, "memory_bytes": 0, "max_rank": "8"}
    assert nodes.declared_profile(0) == {"num_examples": 7}


def test_who_is_revoked_while_answers_are_judged_is_given_no_more_work(door, crowd, monkeypatch, tmp_path):
    check = crowd.check

    def revoked_first(client, statement, signature):
        if client == 2 and crowd.state(2) == "active":
            door.federation.revoke("c2", "stolen")
        check(client, statement, signature)

    monkeypatch.setattr(crowd, "check", revoked_first)
    at_once = FedBuff(size=2, pause_seconds=1e-9)  # whoever fails gets its next job in the same instant
    row, rows = run(door, monkeypatch, crowd, tmp_path, at_once, versions=8)
    assert row["versions"] == 8 and row["updates"]["rejected"] == {"member": 1}
    refused = next(n for n, r in enumerate(rows) if r["event"] == "rejected")
    assert [r["event"] for r in rows[refused:] if r.get("client") == 2] == ["rejected", "left"]


class Answering:
    """A grid of nodes that say they are what a test wants."""

    def __init__(self, claims):
        self.claims, self.waiting, self.pushed = claims, {}, 0

    def get_node_ids(self):
        return list(self.claims)

    def push_messages(self, messages):
        for message in messages:
            self.pushed += 1
            small.set_message_id(message, f"m{self.pushed}")
            self.waiting[f"m{self.pushed}"] = message
        return [m.metadata.message_id for m in messages]

    def pull_messages(self, ids):
        out = []
        for name in [i for i in ids if i in self.waiting]:
            message = self.waiting.pop(name)
            claim = self.claims[message.metadata.dst_node_id]
            out.append(Message(RecordDict({"profile": ConfigRecord({"partition-id": claim})}), reply_to=message))
        return out


def test_a_node_is_whose_the_registry_says_and_one_that_says_otherwise_is_not_admitted(crowd):
    claim_identity(1)
    grid = Answering({10: 0, 11: 0, 99: 1})  # 11 takes the name of client 0, 99 is a stranger who takes that of 1
    nodes = NodeDirectory(grid, None, crowd.nodes)
    assert nodes.refresh() == ([0], [])
    assert nodes.of_client == {0: 10} and nodes.present == [0]
    grid.claims[12] = 2
    assert nodes.refresh() == ([2], []) and nodes.of_client[2] == 12
    grid.claims[13], slow = 3, grid.pull_messages
    grid.pull_messages = lambda ids: []
    assert nodes.refresh() == ([], []) and nodes.silent == [3], "the registry knows whose it is; it has not answered"
    assert nodes.refresh(at_once=True) == ([3], []), "a run that goes on takes the registry's word"
    grid.claims[13], grid.pull_messages = 0, slow
    nodes.refresh()
    assert nodes.refresh() == ([], [3]), "gone as soon as it lies"


def test_without_a_registry_a_node_is_who_it_says(tmp_path):
    claim_identity(1)
    nodes = NodeDirectory(Answering({10: 0, 11: 4, 12: -1}), None)
    assert nodes.refresh() == ([0, 4], []) and nodes.declared_profile(0) == {}


def test_paths_of_a_device_are_not_sent(door, tmp_path):
    e = small.experiment(FedBuff(size=3))
    app = small.counting_app(e, [])
    claim_identity(1)
    request = Message(RecordDict(), 10, "query.profile")
    small.set_message_id(request, "m")
    config = {"partition-id": 1, "data": "/the/scans", "state": str(tmp_path), "sec_per_step": 0.5}
    reply = app(request, Context(1, 10, config, RecordDict(), {}))
    assert dict(reply.content["profile"]) == {"partition-id": 1, "sec_per_step": 0.5}
