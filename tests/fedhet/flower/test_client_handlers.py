"""A device in the worker pool gives the same reply to a full message and to a compact job."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedhet.config import composition
from fedhet.engine.client_runner import Device
from fedhet.flower import messages as records
from fedhet.flower.client_handlers import DeviceApp, remember
from fedhet.flower.compat import claim_identity, set_message_id
from fedhet.numerics import wire_format
from fedhet.runs.experiment import Experiment
from fedhet.simulation.worker_pool import Pool
from fedhet.types import Budget, Job

SMALL = ["model=mlp_small", "partition=iid", "fleet.clients=6", "work.batch=7"]


def device(*more: str) -> Device:
    e = Experiment.of(composition.resolved(composition.compose([*SMALL, *more])))
    return Device(e.method, e.world.model(), e.world, e.seed)


def task(d: Device, client: int, *, own: int | None = None, sha256: str = "") -> tuple[Message, Context]:
    """A job for a client, on the node of the partition `own`."""
    claim_identity(1)
    job = Job(100 + client, client, 0, client, Budget(3 + client % 2), 0.0)
    payload = records.payload_record(wire_format.encode(d.method.space.begin(d.model)))
    content = records.request(job, payload, bytes_up=1, batch=7, sha256=sha256)
    message = Message(content, client + 2, "train", ttl=10.0, group_id="0")
    set_message_id(message, f"m{client}")
    return message, Context(1, client + 2, {"partition-id": client if own is None else own}, RecordDict(), {})


def told(reply: Message) -> tuple[object, ...]:
    """What of a reply must not depend on how it was made."""
    meta = reply.metadata
    ends = (meta.src_node_id, meta.dst_node_id, meta.reply_to_message_id, meta.message_type, meta.group_id)
    if reply.has_error():
        return (*ends, reply.error.code, reply.error.reason)
    head = dict(reply.content.config_records["fedhet"])
    array = reply.content.array_records["payload"]["tree"]
    return (*ends, sorted(reply.content), head, array.dtype, array.shape, array.stype, bytes(array.data))


def test_replies_are_those_of_the_app_and_no_state_is_made_up() -> None:
    d = device()
    app = DeviceApp(d)
    tasks = [task(d, client) for client in range(6)]
    assert all(app.record_of(*one) is not None for one in tasks), "these are what briefs are for"
    with Pool(app, 2) as pool:
        for n, (message, context) in enumerate(tasks):
            pool.submit(n, n, message, context)
        got = [pool.result(n) for n in range(6)]
    for (message, context), outcome in zip(tasks, got, strict=True):
        assert told(outcome.reply) == told(app(message, context))
        assert dict(outcome.state) == {}


def test_a_job_for_another_client_is_refused_in_the_apps_words() -> None:
    d = device()
    app = DeviceApp(d)
    with Pool(app, 1) as pool:
        pool.submit(0, 0, *task(d, 3, own=4))
        pool.submit(1, 1, *task(d, 2))
        wrong, right = pool.result(0).reply, pool.result(1).reply
    assert wrong.error.reason == "ValueError: job 103 is for client 3, this is client 4"
    assert told(right) == told(app(*task(d, 2)))


def test_what_is_more_than_a_job_and_a_payload_is_for_the_app() -> None:
    d = device()
    app = DeviceApp(d)
    message, context = task(d, 1)
    remember(context, {"work": {"v": d.model.flat[:3].clone()}})
    assert isinstance(context.state["memory.work"], ArrayRecord) and app.record_of(message, context) is None
    assert app.record_of(*task(d, 1, sha256="00")) is None
    other = Message(message.content, 3, "query.server_task")
    assert app.record_of(other, task(d, 1)[1]) is None


@pytest.mark.parametrize("more", ["work.momentum=0.9", "privacy=noise", "work=fedprox", "strategy=scaffold"])
def test_methods_that_do_more_are_not_briefed(more: str) -> None:
    d = device(more)
    assert DeviceApp(d).record_of(*task(d, 1)) is None
