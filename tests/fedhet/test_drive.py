"""What goes to many is encoded once: payloads that are the same parts of the same tensors."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from flwr.app import ArrayRecord

from fedhet import drive, wire
from fedhet.drive import Drive


def packer(seal: bool = False) -> Drive:
    """A drive that only packs."""
    return Drive(server=None, grid=None, clock=None, gate=None, nodes=lambda client: client, seal=seal)  # type: ignore[arg-type]


def test_equal_parts_of_equal_tensors_are_encoded_once_and_every_payload_is_its_own(monkeypatch):
    encoded = []
    counting = SimpleNamespace(encode=lambda tree: encoded.append(1) or wire.encode(tree), digest=wire.digest)
    monkeypatch.setattr(drive, "wire", counting)
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
    one, alike = packer(seal=True), {}
    for payload in [*payloads, *reversed(payloads)]:
        tree, parcel, sha256 = one._pack(payload, alike)
        assert tree is payload and isinstance(parcel, ArrayRecord)
        assert bytes(parcel["tree"].data) == wire.encode(payload)
        assert sha256 == wire.digest(wire.encode(payload))
    assert len(encoded) == len(payloads) - 1


def test_a_tree_that_goes_out_again_later_is_not_encoded_again():
    payload, one = {"a": torch.arange(3.0)}, packer()
    assert one._pack(payload, {})[1] is one._pack(payload, {})[1]
