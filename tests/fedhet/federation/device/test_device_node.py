"""The device's node process: its replies, its stored state, and its polling."""

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import RunNotRunningException

from fedhet.deployment import device_node
from fedhet.deployment.device_node import Node, polling_interval
from fedhet.flower.compat import ErrorCode, claim_identity, set_message_id
from fedhet.flower.fleet_api import MAX_PUSHES, FleetNode


class Ended(Exception):
    """No more messages."""


class Carrier:
    """Messages from a list; None is a look at which there was none."""

    node_id = 7

    def __init__(self, *messages):
        self.messages, self.replies = list(messages), []

    def pull(self):
        if not self.messages:
            raise Ended
        return self.messages.pop(0)

    def push(self, reply, seconds):
        self.replies.append((reply, seconds))
        return True


class TaskExecutor:
    """A clock that only naps move."""

    now = 0.0

    def __call__(self):
        return self.now

    def nap(self, seconds):
        self.now += seconds


def request(run=1, kind="query", **content):
    claim_identity(run)
    message = Message(RecordDict({"given": ConfigRecord(content)}), 7, kind)
    set_message_id(message, f"m{run}")
    message.metadata.__dict__["_run_id"] = run
    return message


def counting(message, context):
    """An app that counts the calls of each run in its context."""
    if message.content["given"].get("fail"):
        context.state["calls"] = MetricRecord({"calls": 99})
        raise ValueError("no data")
    calls = int(context.state["calls"]["calls"]) + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"calls": calls})
    told = ConfigRecord({"calls": calls, "run": context.run_id, "place": context.node_config["place"]})
    return Message(RecordDict({"told": told}), reply_to=message)


def worked(*messages, app=counting):
    clock, carrier = TaskExecutor(), Carrier(*messages)
    with pytest.raises(Ended):
        Node(app, {"place": "ward"}, clock, clock.nap).work(carrier)
    return clock, carrier


def test_a_runs_context_lives_on_and_runs_do_not_meet():
    _, carrier = worked(request(1), request(2), request(1), request(1))
    told = [dict(reply.content["told"]) for reply, _ in carrier.replies]
    assert [(t["run"], t["calls"], t["place"]) for t in told] == [
        (1, 1, "ward"), (2, 1, "ward"), (1, 2, "ward"), (1, 3, "ward")
    ]  # fmt: skip


def test_an_app_that_raises_is_an_error_reply_and_leaves_no_trace():
    _, carrier = worked(request(1), request(1, fail=True), request(1))
    replies = [reply for reply, _ in carrier.replies]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION and "no data" in replies[1].error.reason
    assert replies[2].content["told"]["calls"] == 2


def test_only_the_newest_runs_are_kept():
    _, carrier = worked(*[request(run) for run in [*range(1, device_node.MAX_CONTEXTS + 2), 1]])
    assert carrier.replies[-1][0].content["told"]["calls"] == 1


def test_questions_cost_a_twentieth_of_the_time_without_work():
    clock, carrier = worked(*[None] * 200, request(1))
    assert carrier.replies and clock.now > 60
    assert [polling_interval(t) for t in (0, 2, 10, 60, 9e9)] == [0.1, 0.1, 0.5, 3.0, 3.0]
    assert [polling_interval(1, took) for took in (0.01, 0.2, 9)] == [0.1, 0.8, 3.0]


def test_questions_are_frequent_again_after_work():
    clock = TaskExecutor()
    naps = []

    def nap(seconds):
        naps.append(seconds)
        clock.now += seconds

    carrier = Carrier(*[None] * 100, request(1), None, None)
    with pytest.raises(Ended):
        Node(counting, {"place": ""}, clock, nap).work(carrier)
    assert naps[99] > 0.5 and naps[100:] == [0.1, 0.1]


@pytest.mark.parametrize("at", ["receive", "pull", "confirm"])
def test_a_message_of_a_run_that_ended_is_none(at):
    def unless(name, given):
        def do(*_):
            if name == at:
                raise RunNotRunningException
            return given(*_)

        return do

    message = request()
    parts = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    announced = [(message, get_object_tree(message))]
    receive, pull, confirm = (
        unless(name, given)
        for name, given in {
            "receive": lambda: announced.pop() if announced else None,
            "pull": lambda run, name: parts[name],
            "confirm": lambda run, name: None,
        }.items()
    )
    fleet_node = FleetNode(7, receive, lambda *_: None, pull, lambda *_: None, confirm)
    assert fleet_node.pull() is None and not fleet_node._incoming


class Forgetful:
    """A SuperLink that dies in the middle of an upload so many times: it knows the session no more afterwards."""

    def __init__(self, deaths):
        self.deaths, self.session, self.held, self.announced = deaths, 0, {}, []

    def announce(self, reply, tree, seconds):
        self.session += 1
        self.announced.append(reply.metadata.message_id)
        wanted = {obj.object_id for obj in iterate_object_tree(tree)} - set(self.held)
        return wanted, f"session {self.session}"

    def take(self, run_id, session, object_id, content):
        if self.deaths and len(self.held) >= 1:
            self.deaths -= 1
            raise ObjectPushError(object_id, run_id, session)
        assert session == f"session {self.session}"
        self.held[object_id] = content


def test_an_upload_that_a_dying_superlink_forgot_is_made_again():
    reply = Message(RecordDict({"told": ConfigRecord({"a": 1.0}), "more": MetricRecord({"b": 2})}), reply_to=request())
    link = Forgetful(deaths=1)
    sender = FleetNode(7, lambda: None, link.announce, lambda *_: b"", link.take, lambda *_: None)
    assert sender.push(reply, 0.1)
    assert link.announced == [reply.metadata.message_id] * 2, "the same reply: it counts once"
    assert set(link.held) == set(get_all_nested_objects(reply))
    link = Forgetful(deaths=10**6)
    sender = FleetNode(7, lambda: None, link.announce, lambda *_: b"", link.take, lambda *_: None)
    with pytest.raises(ObjectPushError):
        sender.push(reply, 0.1)
    assert len(link.announced) == MAX_PUSHES


def test_an_earlier_life_is_ended_once_the_server_answers(monkeypatch):
    import httpx

    slept, answers = [], [httpx.ConnectError("away"), httpx.ConnectError("away"), None]

    def end():
        error = answers.pop(0)
        if error:
            raise error

    monkeypatch.setattr(device_node.time, "sleep", slept.append)
    device_node._unregister_earlier(end)
    assert not answers and slept[-1] == device_node.OFFLINE_S
    refusal = httpx.HTTPStatusError("gone", request=httpx.Request("POST", "https://x"), response=httpx.Response(412))
    answers[:] = [refusal]
    slept.clear()
    device_node._unregister_earlier(end)
    assert not answers and not slept
