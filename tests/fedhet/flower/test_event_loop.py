"""A payload for many clients is encoded once, and late replies are reported."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict

from fedhet.flower import payload_packing
from fedhet.flower.compat import ErrorCode, claim_identity
from fedhet.flower.event_loop import EventLoop
from fedhet.flower.payload_packing import PayloadPacker
from fedhet.numerics import wire_format


def test_equal_parts_of_equal_tensors_are_encoded_once_and_every_payload_is_its_own(monkeypatch):
    encoded = []
    counting = SimpleNamespace(
        encode=lambda tree: encoded.append(1) or wire_format.encode(tree), digest=wire_format.digest
    )
    monkeypatch.setattr(payload_packing, "wire_format", counting)
    whole, square = torch.arange(12.0).reshape(3, 4), torch.arange(4.0).reshape(2, 2)
    payloads = [
        {"a": whole[:2], "b": square},
        {"a": whole[:2], "b": square},
        {"a": whole[:1], "b": square},
        {"a": whole[:2], "c": square},
        {"a": whole[:2], "b": square.T},
        {"a": whole[:2], "b": square.clone()},
        {"a": whole[:2].view(torch.int32), "b": square},
        {"b": square, "a": whole[:2]},
    ]
    one, alike = PayloadPacker(seal=True), {}
    for payload in [*payloads, *reversed(payloads)]:
        tree, payload_record, sha256 = one.pack(payload, alike)
        assert tree is payload and isinstance(payload_record, ArrayRecord)
        assert bytes(payload_record["tree"].data) == wire_format.encode(payload)
        assert sha256 == wire_format.digest(wire_format.encode(payload))
    assert len(encoded) == len(payloads) - 1


def test_a_tree_that_goes_out_again_later_is_not_encoded_again():
    payload, one = {"a": torch.arange(3.0)}, PayloadPacker(seal=False)
    assert one.pack(payload, {})[1] is one.pack(payload, {})[1]


@pytest.mark.parametrize(
    ("code", "now", "told"),
    [
        (ErrorCode.MESSAGE_UNAVAILABLE, 12.0, "timeout"),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, 12.5, "timeout"),
        (ErrorCode.MESSAGE_UNAVAILABLE, 11.9, "no reply: it is gone"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, 12.5, "client error: it is gone"),
    ],
)
def test_a_message_that_a_superlink_forgot_at_the_deadline_timed_out(code, now, told):
    """Which of the two sees the deadline first is chance; the reason that is counted is not."""
    heard = []
    server = SimpleNamespace(failed=lambda job, reason, at: heard.append((job, reason, at)))
    one = EventLoop(server=server, grid=None, clock=SimpleNamespace(now=lambda: now), gate=None, nodes=int, timeout=2.0)  # type: ignore[arg-type]
    claim_identity(1)
    asked = Message(RecordDict(), 2, "train")
    one._process(SimpleNamespace(id=7, client=0, sent=10.0), Message(Error(code, "it is gone"), reply_to=asked))
    assert heard == [(7, told, now)]


def test_a_reply_may_have_the_expected_size_and_a_late_one_is_dropped():
    server = SimpleNamespace(inflight={7: "job"}, expects={"job": wire_format.Schema.of({"x": torch.zeros(1000)})}.get)
    one = EventLoop(server=server, grid=None, clock=None, gate=None, nodes=int)  # type: ignore[arg-type]
    one._pending = {"in flight": 7, "timed out": 8}
    assert one.allowance("in flight") == len(wire_format.encode({"x": torch.zeros(1000)}))
    assert one.allowance("timed out") is None
    assert one.allowance("who are you") == 0
