"""Messages through a real SuperLink: slow, endless or false replies affect their own client only."""

import contextlib
import datetime
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import uvicorn
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.main import create_app
from flwr.supernode.fleet_http_connection import http_request_response

from fedhet.config import composition
from fedhet.deployment import clientapp
from fedhet.deployment import device_node as node
from fedhet.deployment.live_run import live
from fedhet.flower import messages as records
from fedhet.flower.compat import claim_identity, empty_run, set_message_id
from fedhet.flower.error_replies import failure_reason
from fedhet.flower.fleet_api import FleetNode
from fedhet.flower.reply_stream import MAX_PARTS_PER_PULL, OVERHEAD_BYTES, complete_replies
from fedhet.numerics.wire_format import MalformedUpdate
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment

ALLOWED = 1 << 20
"""Bytes of payload that are expected of every reply here."""


class Node:
    """An online node that can leave off in the middle of a reply."""

    def __init__(self, parts):
        self.id, self._receive, self._send, _, _, _, self._put, _ = parts
        self.session, self.left = "", []

    def pull(self):
        """The node's task, without its content, which is the same for every node here."""
        end = time.monotonic() + 60
        while (received := self._receive()) is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        return received[0]

    def announce(self, reply, made=None):
        """The reply is known from now on; nothing of it is there. `made` says what it will be instead."""
        root, parts, tree = made or plain(reply)
        set_message_id(reply, root)
        self.run = reply.metadata.run_id
        wanted, self.session = self._send(reply, tree, 0.1)
        self.left = [(name, content) for name, content in parts.items() if name in wanted]

    def upload(self, parts=None):
        """Some of what is left, or all."""
        for name, content in self.left[:parts]:
            self._put(self.run, self.session, name, content)
        del self.left[:parts]


class Link:
    """A SuperLink in this process with one run, its ServerApp's grid, and nodes."""

    def __init__(self, stack):
        self.app, self.stack = create_app(), stack
        self.state = self.app.state.linkstate_factory.state()
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        stack.callback(thread.join)
        stack.callback(setattr, server, "should_exit", True)
        self.run_id = self.state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, "", TaskType.SERVER_APP)
        [task] = self.state.get_tasks(run_ids=[self.run_id])
        token = self.state.claim_task(task.task_id)
        self.state.activate_task(task.task_id)
        # Without a sign of life the token is worth nothing after a minute, and Flower then interrupts this process.
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(task.task_id, over))
        beating.start()
        stack.callback(beating.join)
        stack.callback(over.set)
        claim_identity(self.run_id)
        self.flower = HttpGrid(self.address, insecure=True, token=token)
        self.flower.set_run(empty_run(self.run_id))
        stack.callback(self.flower.close)
        self.grid = complete_replies(self.flower)
        self.grid.allowance = lambda request: ALLOWED

    def _beat(self, task_id, over):
        while not over.wait(1.0):
            self.state.acknowledge_task_heartbeat(task_id)

    def nodes(self, count):
        return [Node(self.stack.enter_context(http_request_response(self.address, True))) for _ in range(count)]

    def ask(self, nodes):
        """A message for each; their ids by node."""
        messages = [Message(RecordDict(), node.id, "train", ttl=600.0) for node in nodes]
        return dict(zip([node.id for node in nodes], self.grid.push_messages(messages), strict=True))

    def forget_uploads(self):
        """The three minutes are over for every upload that is not whole."""
        for session in self.state._object_push_sessions.values():
            session.expires_at -= datetime.timedelta(seconds=181)


@pytest.fixture
def link(monkeypatch):
    monkeypatch.setenv("FLWR_DATABASE", ":flwr-in-memory:")
    with contextlib.ExitStack() as stack:
        yield Link(stack)


def answer(task, x):
    """A reply of several parts."""
    arrays = ArrayRecord({"x": Array(np.asarray(x, np.float64))})
    return Message(RecordDict({"arrays": arrays, "told": ConfigRecord({"n": 1})}), reply_to=task)


def numbers(reply):
    return reply.content["arrays"]["x"].numpy().tolist()


@pytest.mark.transport
def test_a_slow_or_endless_upload_does_not_delay_others(link):
    quick, slow, gone = nodes = link.nodes(3)
    asked = link.ask(nodes)
    for number, one in enumerate(nodes):
        one.announce(answer(one.pull(), [number, 7.0]))
    slow.upload(2)
    gone.upload(1)
    start = time.monotonic()
    assert list(link.grid.pull_messages(asked.values())) == []
    quick.upload()
    [first] = link.grid.pull_messages(asked.values())
    assert first.metadata.reply_to_message_id == asked[quick.id] and numbers(first) == [0, 7]
    assert time.monotonic() - start < 60, "Flower's own grid would wait for minutes"
    waiting = [asked[slow.id], asked[gone.id]]
    assert list(link.grid.pull_messages(waiting)) == []
    assert list(link.grid.pull_messages([asked[gone.id]])) == []
    slow.upload()
    assert list(link.grid.pull_messages([asked[gone.id]])) == [], "only what was asked for"
    [second] = link.grid.pull_messages(waiting)
    assert second.metadata.reply_to_message_id == asked[slow.id] and numbers(second) == [1, 7]
    link.forget_uploads()
    [third] = link.grid.pull_messages([asked[gone.id]])
    assert third.metadata.reply_to_message_id == asked[gone.id]
    assert failure_reason(third) == "no reply: its upload was broken off"
    assert list(link.grid.pull_messages([])) == [] and not link.grid._arriving


@pytest.mark.transport
def test_a_node_that_is_gone_is_an_error_as_on_flowers_own_grid(link):
    with contextlib.ExitStack() as brief:
        node = Node(brief.enter_context(http_request_response(link.address, True)))
        [asked] = link.ask([node]).values()
    [reply] = link.grid.pull_messages([asked])
    assert reply.metadata.reply_to_message_id == asked and failure_reason(reply) == "node unavailable"
    [reply] = link.grid.pull_messages(["0" * 64])
    assert failure_reason(reply).startswith("no reply: ")


@pytest.mark.transport
@pytest.mark.parametrize("whole", [True, False])
def test_complete_updates_of_a_client_that_left_count_and_no_others_are_awaited(link, whole):
    with contextlib.ExitStack() as brief:
        node = Node(brief.enter_context(http_request_response(link.address, True)))
        [asked] = link.ask([node]).values()
        node.announce(answer(node.pull(), [1.0]))
        node.upload(1)
        assert list(link.grid.pull_messages([asked])) == []
        if whole:
            node.upload()
    [reply] = link.grid.pull_messages([asked])
    assert numbers(reply) == [1] if whole else failure_reason(reply) == "node unavailable"
    assert not link.grid._arriving


@pytest.mark.transport
def test_one_in_very_many_parts_lets_others_through(link):
    scattered, quick = nodes = link.nodes(2)
    asked = link.ask(nodes)
    arrays = {f"x{n}": Array(np.full(1, float(n))) for n in range(MAX_PARTS_PER_PULL)}
    reply = Message(RecordDict({"arrays": ArrayRecord(arrays)}), reply_to=scattered.pull())
    scattered.announce(reply)
    scattered.upload()
    quick.announce(answer(quick.pull(), [7.0]))
    quick.upload()
    [first] = link.grid.pull_messages(asked.values())
    assert first.metadata.src_node_id == quick.id
    assert len(link.grid._arriving[asked[scattered.id]].parts) == MAX_PARTS_PER_PULL
    waiting = [asked[scattered.id]]
    assert list(link.grid.pull_messages(waiting)) == []
    [whole] = link.grid.pull_messages(waiting)
    assert [a.numpy()[0] for a in whole.content["arrays"].values()] == list(range(MAX_PARTS_PER_PULL))


@pytest.mark.transport
def test_one_in_very_many_parts_may_leave_when_all_are_sent(link):
    arrays = {f"x{n}": Array(np.full(1, float(n))) for n in range(2 * MAX_PARTS_PER_PULL)}
    with contextlib.ExitStack() as brief:
        node = Node(brief.enter_context(http_request_response(link.address, True)))
        [asked] = link.ask([node]).values()
        node.announce(Message(RecordDict({"arrays": ArrayRecord(arrays)}), reply_to=node.pull()))
        node.upload(1)
        assert list(link.grid.pull_messages([asked])) == []
        node.upload()
    looks = [list(link.grid.pull_messages([asked])) for _ in range(4)]
    assert looks == [[], [], [], []]
    [whole] = link.grid.pull_messages([asked])
    assert len(whole.content["arrays"]) == 2 * MAX_PARTS_PER_PULL


@pytest.mark.transport
def test_one_that_is_too_large_is_not_kept_and_lets_others_through(link):
    """Its sender is told nothing that looks like a failure of the SuperLink: honest ones may be mistaken, too."""
    large, quick = nodes = link.nodes(2)
    asked = link.ask(nodes)
    pieces = {f"x{n}": Array(np.full(ALLOWED // 8, float(n))) for n in range(5)}
    large.announce(Message(RecordDict({"arrays": ArrayRecord(pieces)}), reply_to=large.pull()))
    large.upload(8)
    quick.announce(answer(quick.pull(), [7.0]))
    quick.upload()
    [first] = link.grid.pull_messages(asked.values())
    assert first.metadata.src_node_id == quick.id and not link.grid._arriving[asked[large.id]].parts
    large.upload()
    waiting = [asked[large.id]]
    assert list(link.grid.pull_messages(waiting)) == []
    [found] = link.grid.pull_messages(waiting)
    assert found.metadata.src_node_id == large.id and not found.content


class Held:
    """Uploads of the server, which announces its messages and goes no further: an upload is [parts, put] then."""

    def __init__(self, monkeypatch):
        self.uploads = []
        monkeypatch.setattr("flwr.superlink.grid.http_grid.push_objects", self.hold)

    def hold(self, objects, push_object_fn, object_ids_to_push):
        self.uploads.append(([(name, objects[name].deflate()) for name in object_ids_to_push], push_object_fn))

    def upload(self, number, parts=None):
        left, put = self.uploads[number]
        for name, content in left[:parts]:
            put(name, content)
        del left[:parts]


def asked_for(link, node, x):
    content = RecordDict({"arrays": ArrayRecord({"x": Array(np.asarray(x, np.float64))})})
    return link.grid.push_messages([Message(content, node.node_id, "train", ttl=600.0)])


@pytest.mark.transport
def test_a_node_takes_first_what_is_whole_first_and_goes_on_after_a_server_that_stopped(link, monkeypatch, caplog):
    number, receive, send, _, _, pull, put, confirm = link.stack.enter_context(
        http_request_response(link.address, True)
    )
    pulled, server = [], Held(monkeypatch)

    def noted(run, name):
        content = pull(run, name)
        pulled.append(name)
        return content

    node = FleetNode(number, receive, send, noted, put, confirm)
    assert node.pull() is None
    [stopped, slow, quick] = [asked_for(link, node, [n, 7.0])[0] for n in range(3)]
    server.upload(0, 1)
    server.upload(1, 2)
    server.upload(2)
    first = node.pull()
    assert first.metadata.message_id == quick and numbers(first) == [2, 7]
    assert node.push(answer(first, [1.0]), 0.1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(node.pull)
        time.sleep(0.3)
        assert not waiting.done()
        server.upload(1)
        second = waiting.result(10)
    assert second.metadata.message_id == slow and numbers(second) == [1, 7]
    assert not [r for r in caplog.records if r.name == "fedhet.fleet"] and len(pulled) == len(set(pulled))
    link.forget_uploads()
    assert node.pull() is None and not node._incoming
    assert [r.name for r in caplog.records if r.name == "fedhet.fleet"] == ["fedhet.fleet"]
    [reply] = link.grid.pull_messages([quick])
    assert numbers(reply) == [1]
    [gone] = link.grid.pull_messages([stopped])
    assert failure_reason(gone).startswith("no reply: ")


@pytest.mark.transport
def test_a_message_with_lost_parts_is_answered_with_an_error_at_once(link, monkeypatch):
    number, receive, send, _, _, pull, put, confirm = link.stack.enter_context(
        http_request_response(link.address, True)
    )
    node, server = FleetNode(number, receive, send, pull, put, confirm), Held(monkeypatch)
    [lost] = asked_for(link, node, [1.0])
    server.upload(0, 2)
    node._poll()
    link.state.object_store.clear()
    assert node.pull() is None
    [reply] = link.grid.pull_messages([lost])
    assert reply.metadata.src_node_id == number
    assert failure_reason(reply) == "no reply: the message was not sent to its end"


def forged(reply, change):
    """The reply's parts with `change` made to the contents of its array, and their new tree and root."""
    names, parts, trees = {}, {}, {}
    for name, one in get_all_nested_objects(reply).items():
        content = change(one.deflate()) if isinstance(one, Array) else one.deflate()
        for old, new in names.items():
            content = content.replace(old.encode(), new.encode())
        names[name] = get_object_id(content)
        parts[names[name]] = content
        children = [trees[names[child.object_id]] for child in (one.children or {}).values()]
        trees[names[name]] = ObjectTree(object_id=names[name], children=children)
    root = names[reply.object_id]
    return root, parts, trees[root]


def plain(reply):
    return forged(reply, lambda content: content)


def otherwise(reply, **said):
    """The reply as if its sender had said something else of it."""
    kept = ("run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "created_at",
            "ttl", "message_type")  # fmt: skip
    told = {name: getattr(reply.metadata, name) for name in kept}
    return plain(make_message(Metadata(**{**told, **said}), reply.content))


def repeated(reply):
    """Its array is one piece, very many times over: few bytes that would be many."""

    def change(content):
        head, body = content.split(b"\0", 1)
        body = json.dumps({**json.loads(body), "arraychunk_ids": [0] * 300_000}).encode()
        kind, children, _ = head.decode().split(" ")
        return f"{kind} {children} {len(body)}".encode() + b"\0" + body

    return forged(reply, change)


class Worker(threading.Thread):
    """A client of ours on a link: a device's node in a thread. Between the beginning and the end of an update it waits
    for as many seconds as `naps` say for each; the server's questions who it is, however many, it answers at once."""

    def __init__(self, link, number, *naps):
        super().__init__()
        self.link, self.number, self.naps, self.over = link, number, iter(naps), threading.Event()
        self.start()

    def run(self):
        with http_request_response(self.link.address, True) as (number, receive, send, _, _, pull, put, confirm):
            self.node_id, self._whole = number, FleetNode(number, receive, send, pull, put, confirm)
            with contextlib.suppress(InterruptedError):
                node.Node(clientapp.client, {"partition-id": self.number}, nap=self.nap).work(self)

    def nap(self, seconds):
        if self.over.wait(0.02):
            raise InterruptedError

    def pull(self):
        return self._whole.pull()

    def push(self, reply, seconds):
        one = Node((self.node_id, None, self._whole._send, *[None] * 3, self._whole._push_object, None))
        one.announce(reply)
        trained = reply.metadata.message_type.startswith("train")
        if self.over.wait(next(self.naps, 0.0) if trained else 0.0):
            raise InterruptedError
        one.upload()
        return True


def run(link, folder, workers, *more):
    """A run over these clients. The model is larger than what any reply may have anyway, so that what a job's may have
    is used, too."""
    given = ["strategy=fedasync", "fleet=homogeneous", "fleet.clients=3", "partition=iid", "model.hidden=[600,600]",
             "budget.epochs=null", "budget.steps=2", *more]  # fmt: skip
    experiment = Experiment.of(composition.resolved(composition.compose(given)))
    try:
        return live(experiment, folder, link.flower, wanted=3, poll=0.02).row
    finally:
        for worker in workers:
            worker.over.set()
            worker.join()


@pytest.mark.transport
def test_a_run_continues_while_a_clients_upload_is_stalled(link, tmp_path):
    workers = [Worker(link, 0), Worker(link, 1), Worker(link, 2, None)]
    row = run(link, tmp_path, workers, "stop.versions=12", "stop.seconds=120")
    assert row["bytes_up"] > 12 * OVERHEAD_BYTES and row["updates"]["accepted"] == row["versions"] == 12
    assert row["updates"]["failed"] == row["updates"]["rejected"] == {}
    combined = [r["clients"] for r in read_rows(tmp_path / "events.jsonl") if r["event"] == "combined"]
    assert {c for clients in combined for c in clients} == {0, 1}


@pytest.mark.transport
def test_a_reply_to_no_open_message_is_dropped(link, caplog):
    [node] = link.nodes(1)
    [asked] = link.ask([node]).values()
    node.announce(answer(node.pull(), [1.0]))
    node.upload(2)
    assert list(link.grid.pull_messages([asked])) == [] and link.grid._arriving[asked].parts
    link.grid.allowance = lambda request: None
    for _ in range(2):
        node.upload(1)
        assert list(link.grid.pull_messages([asked])) == [] and not link.grid._arriving[asked].parts
    node.upload()
    [reply] = link.grid.pull_messages([asked])
    assert reply.has_content() and not reply.content and reply.metadata.reply_to_message_id == asked
    assert not [r for r in caplog.records if r.name == "fedhet.replies"]


LIES = {
    "its reply_to_message_id is not the announced one": lambda reply, victim, task: otherwise(
        reply, reply_to_message_id=task.metadata.message_id
    ),
    "its src_node_id is not the announced one": lambda reply, victim, task: otherwise(reply, src_node_id=victim.id),
    "it is no message": lambda reply, victim, task: plain(reply.content),
    "it is larger than": lambda reply, victim, task: plain(answer(task, np.arange((OVERHEAD_BYTES + ALLOWED) / 8 + 1))),
    "its arrays would be larger than": lambda reply, victim, task: repeated(reply),
    "KeyError": lambda reply, victim, task: forged(reply, lambda content: content.replace(b"shape", b"sh4pe")),
}


@pytest.mark.transport
def test_a_reply_is_what_it_was_announced_as_or_it_is_malformed(link, caplog):
    """Each of these would end a run, or be held against somebody else, if it were believed."""
    victim, liar = nodes = link.nodes(2)
    for how, lie in {"": lambda reply, victim, task: plain(reply), **LIES}.items():
        asked = link.ask(nodes)
        task, others = liar.pull(), victim.pull()
        reply = answer(task, [1.0])
        liar.announce(reply, lie(reply, victim, others))
        liar.upload()
        caplog.clear()
        [found] = list(link.grid.pull_messages(asked.values())) or link.grid.pull_messages(asked.values())
        assert found.metadata.reply_to_message_id == asked[liar.id] and found.metadata.src_node_id == liar.id
        if how:
            assert how in caplog.text
            with pytest.raises(MalformedUpdate):
                records.read_answer(found.content)
        else:
            assert numbers(found) == [1]
