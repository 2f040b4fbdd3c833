"""The short form of experiments/reliability: processes of a live federation are killed, and no update is lost."""

import random
import socket
import threading
import time

import pytest
import torch
from flwr.app import RecordDict

from experiments.reliability import memory
from experiments.reliability.relay import Relay
from experiments.reliability.soak import plan, soak
from fedhet.flower.client_state import ClientState
from fedhet.flower.messages import payload_record
from fedhet.numerics import wire_format


def test_blows_are_spread_evenly_and_follow_the_seed():
    blows = plan(30, 3, random.Random(1))
    assert sorted(blows) == sorted(["server"] * 10 + ["client"] * 10 + ["superlink"] * 10 + ["network"] * 3)
    assert blows == plan(30, 3, random.Random(1)) != plan(30, 3, random.Random(2))


def test_a_relay_passes_bytes_until_it_is_cut_and_afterwards_again():
    target = socket.create_server(("127.0.0.1", 0))

    def echo():
        while True:
            try:
                peer, _ = target.accept()
            except OSError:
                return
            threading.Thread(target=lambda peer=peer: peer.sendall(peer.recv(100)), daemon=True).start()

    threading.Thread(target=echo, daemon=True).start()
    relay = Relay(target.getsockname()[1])

    def ask():
        with socket.create_connection(("127.0.0.1", relay.port), timeout=5) as sock:
            try:
                sock.sendall(b"hello")
                return sock.recv(100)
            except OSError:
                return b""

    assert ask() == b"hello"
    relay.cut(0.3)
    assert ask() == b""
    end = time.monotonic() + 60
    while ask() != b"hello":
        assert time.monotonic() < end
    relay.close()
    target.close()


def test_a_reset_memory_differs_from_one_that_continued():
    def after(own, sent):
        answer = RecordDict({"payload": payload_record(wire_format.encode({"a": sent[:2], "b": sent[2:]}))})
        return ClientState("2 0 1", answer, {"work": {"linear": own}})

    own, sent = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    before = ClientState("1 0 0", None, {"work": {"linear": own}})
    assert memory.grew(before, after(own - 0.1 * sent, sent), 0.1)
    assert not memory.grew(before, after(-0.1 * sent, sent), 0.1), "it was lost"
    assert not memory.grew(before, after(own - 0.2 * sent, sent), 0.1), "it moved twice"


@pytest.mark.transport
@pytest.mark.slow
def test_nothing_is_lost_and_nothing_counts_twice_when_server_client_and_superlink_are_killed(tmp_path):
    """Of a detached run: nobody sees to it that it goes on but the server."""
    done = soak(tmp_path / "soak", ["server", "client", "superlink"], clients=2, tasks=16, methods=("FedBuff",))
    assert [role for role, _ in done.blows] == ["server", "client", "superlink"]
    assert done.lost == done.doubled == 0
    assert sum(ledger.accepted for _, ledger in done.runs) >= 8
    assert all(ledger.again for _, ledger in done.runs), "the journal alone leads to the model, bit for bit"
