"""The nodes of a run: those that answer in time and have the code that the method needs."""

import importlib.util
import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedhet.deployment.live_run import live
from fedhet.deployment.notices import Notices, Reader
from fedhet.flower import node_directory
from fedhet.flower.compat import claim_identity, set_message_id
from fedhet.flower.node_directory import NoClients, NodeDirectory
from fedhet.provenance import device_code
from fedhet.runs.event_log import read_rows
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.sync import Sync

found = importlib.util.spec_from_file_location("small_grid", Path(__file__).parents[1] / "small_grid.py")
small = importlib.util.module_from_spec(found)
found.loader.exec_module(small)


class Hand:
    """A clock that goes on by a second with every nap."""

    second = 0.0

    def now(self):
        return self.second

    def nap(self):
        self.second += 1.0


class Slow:
    """NodeDirectory that answer after so many seconds; never, if that is infinite. `code` is what they say of
    theirs."""

    def __init__(self, clock, after, code=None):
        claim_identity(1)
        self.clock, self.after, self.code = clock, after, code or {}
        self.waiting, self.pushed = {}, 0

    def get_node_ids(self):
        return list(self.after)

    def push_messages(self, messages):
        for message in messages:
            self.pushed += 1
            set_message_id(message, f"m{self.pushed}")
            self.waiting[f"m{self.pushed}"] = (message, self.clock.now() + self.after[message.metadata.dst_node_id])
        return [m.metadata.message_id for m in messages]

    def pull_messages(self, ids):
        for name in [i for i in ids if i in self.waiting and self.waiting[i][1] <= self.clock.now()]:
            message, _ = self.waiting.pop(name)
            node = message.metadata.dst_node_id
            told = self.code.get(node, {})
            records = {"profile": ConfigRecord({"partition-id": node - 10}), "fedhet": ConfigRecord(told)}
            yield Message(RecordDict(records), reply_to=message)


NEVER = float("inf")
BOOK = {10: 0, 11: 1, 12: 2}


def gathering(after, **given):
    clock = Hand()
    made = NodeDirectory(Slow(clock, after, given.pop("code", None)), clock, lambda: BOOK, given.pop("ours", {}))
    return made, clock, lambda wanted, **more: made.gather(wanted, 180.0, clock.nap, **more)


def test_a_run_begins_with_those_who_answer_and_says_who_does_not():
    made, clock, gather = gathering({10: 1.0, 11: 2.0, 12: NEVER})
    gather(3, least=1)
    assert made.present == [0, 1] and made.silent == [2] and set(made.of_client) == {0, 1}
    assert 2.0 + node_directory.MIN_WAIT_S <= clock.now() <= 2.0 + node_directory.WAIT_FACTOR * 2.0 + 2.0


def test_one_that_was_silent_comes_when_it_answers():
    made, clock, gather = gathering({10: 1.0, 11: 2.0, 12: 60.0})
    gather(3, least=1)
    assert made.refresh() == ([], [])
    clock.second = 60.0
    assert made.refresh() == ([2], []) and made.silent == []


def test_slow_devices_are_given_the_time_that_slow_devices_take():
    made, clock, gather = gathering({10: 8.0, 11: 20.0, 12: 40.0})
    gather(3, least=1)
    assert made.present == [0, 1, 2] and clock.now() == 40.0


def test_a_number_that_was_asked_for_is_waited_for_and_missed_by_name():
    made, clock, gather = gathering({10: 1.0, 11: 2.0, 12: NEVER})
    told = []
    with pytest.raises(NoClients, match="2 of 3 clients answered within 180 seconds"):
        gather(3, waiting=lambda: told.append(clock.now()))
    assert made.silent == [2] and len(told) > 10, "it says what it waits for, again and again"


def test_a_run_without_clients_does_not_start():
    _, _, gather = gathering({10: NEVER, 11: NEVER, 12: NEVER})
    with pytest.raises(NoClients, match="0 of 1"):
        gather(3, least=1)


OURS = {"clients.work.sgd": "aa", "strategies.spaces.full": "bb"}


def said(protocol=device_code.PROTOCOL, **code):
    return {"protocol": protocol, "code": json.dumps(OURS | {k.replace("__", "."): v for k, v in code.items()})}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (said(clients__work__sgd="cc"), "its code differs: clients/work/sgd.py"),
        (said(clients__work__sgd=device_code.MISSING), "its code differs: clients/work/sgd.py"),
        (
            said(clients__work__sgd=device_code.CHANGED),
            "its code was changed after it was started: clients/work/sgd.py",
        ),
        (said(protocol=1), f"it speaks protocol 1, the server {device_code.PROTOCOL}"),
        ({}, f"it speaks a protocol from before there were numbers, the server {device_code.PROTOCOL}"),
        (said() | {"code": "[" * 10_000}, "its code differs: clients/work/sgd.py, strategies/spaces/full.py"),
        (said() | {"code": "[1]"}, "its code differs: clients/work/sgd.py, strategies/spaces/full.py"),
    ],
)
def test_a_node_with_other_code_is_left_out_before_anything_is_trained(told, why):
    code = {10: said(), 11: said(fedhet__report__page="dd"), 12: told}
    made, clock, gather = gathering({10: 1.0, 11: 1.0, 12: 1.0}, code=code, ours=OURS)
    gather(3, least=1)
    assert made.present == [0, 1] and made.incompatible == {2: why} and clock.now() == 1.0, "nobody is waited for"
    assert made.refresh() == ([], []) and made.refresh(at_once=True) == ([], [])


def test_a_node_that_comes_back_with_the_right_code_is_taken_in():
    code = {10: said(), 11: said(), 12: said(clients__work__sgd="cc")}
    made, clock, gather = gathering({10: 1.0, 11: 1.0, 12: 1.0}, code=code, ours=OURS)
    gather(3, least=1)
    away = made.grid.after.pop(12)
    made.refresh()
    made.grid.after[12], made.grid.code[12] = away, said()
    made.refresh()
    clock.nap()
    assert made.refresh() == ([2], []) and made.incompatible == {}


def test_one_that_was_taken_at_its_word_goes_when_its_code_turns_out_to_differ():
    """After a restart of the server clients are at work, and answer only then."""
    code = {10: said(), 11: said(), 12: said(clients__work__sgd="cc")}
    made, clock, _ = gathering({10: 1.0, 11: 1.0, 12: 5.0}, code=code, ours=OURS)
    assert made.refresh(at_once=True) == ([0, 1, 2], [])
    clock.second = 5.0
    assert made.refresh() == ([], [2]) and set(made.incompatible) == {2}


class Skewed:
    """The clients' app, where one node says another hash of one module than it should."""

    def __init__(self, app, node, module):
        self.app, self.node, self.module = app, node, module

    def __call__(self, message, context):
        reply = self.app(message, context)
        if message.metadata.message_type == "query.profile" and message.metadata.dst_node_id == self.node:
            told = reply.content["fedhet"]
            told["code"] = json.dumps({**json.loads(told["code"]), self.module: "other"})
        return reply


def test_a_run_excludes_and_reports_clients_with_other_code_without_a_violation(tmp_path):
    claim_identity(1)
    e = small.experiment(FedBuff(size=2), versions=4)
    app = Skewed(small.counting_app(e, []), 12, "fedhet.engine.client_runner")
    grid = small.SmallGrid(app, small.contexts(tmp_path))
    result = live(e, tmp_path / "run", grid, wanted=4, least=1, poll=1e-4)
    rows = read_rows(tmp_path / "run" / "events.jsonl")
    assert result.row["versions"] == 4 and result.row["updates"]["rejected"] == {}
    assert not [r for r in rows if r["event"] == "assign" and r["client"] == 2]
    assert [r for r in rows if r["event"] == "assign" and r["client"] == 3]
    why = "client 2 is left out of this run: its code differs: fedhet/engine/client_runner.py"
    assert [text for text in Reader(tmp_path / "run")() if "client 2" in text] == [why]


def test_a_run_without_enough_clients_says_what_it_waits_for(tmp_path, monkeypatch):
    claim_identity(1)
    monkeypatch.setattr("fedhet.deployment.membership_notices.IDLE_NOTICE_S", 0.05)
    monkeypatch.setattr("fedhet.deployment.membership_notices.REPEAT_NOTICE_S", 0.1)
    monkeypatch.setattr("fedhet.deployment.membership_monitor.WATCH_INTERVAL_S", 0.01)
    e = small.experiment(Sync(min_updates=4), versions=2)
    contexts = small.contexts(tmp_path)
    grid = small.SmallGrid(small.counting_app(e, []), contexts)
    told = Reader(tmp_path / "run")
    heard = []

    def online(self):
        heard.extend(text for text in told() if text.startswith("a round"))
        return list(contexts)[: 4 if len(heard) >= 3 else 3]

    monkeypatch.setattr(small.SmallGrid, "get_node_ids", online)
    result = live(e, tmp_path / "run", grid, wanted=3, least=1, poll=1e-3)
    assert result.row["versions"] == 2
    assert heard[:3] == ["a round opens with 4 clients; 3 are online"] * 3


def test_messages_are_reported_once_or_again_after_a_time_and_in_plain_characters(tmp_path, capsys):
    second = [0.0]
    made, read = Notices(tmp_path, lambda: 7.0, lambda: second[0]), Reader(tmp_path)
    made.say("c\x1b[31m2\u202e is here\n")
    made.repeat("a", "one", 10.0)
    made.repeat("a", "one", 10.0)
    made.repeat("a", "two", 10.0)
    second[0] = 10.0
    made.repeat("a", "two", 10.0)
    assert read() == ["c\\x1b[31m2\\u202e is here\\x0a", "one", "two", "two"] and read() == []
    assert capsys.readouterr().out.splitlines() == ["c\\x1b[31m2\\u202e is here\\x0a", "one", "two", "two"]
