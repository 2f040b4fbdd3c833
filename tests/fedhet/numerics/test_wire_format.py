"""Bytes to tensors and back: exact round trips, views instead of copies, and one exception for everything else."""

import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhet.numerics import tree, wire_format
from fedhet.numerics.tree import FlatTree, Leaf, Schema, flatten
from fedhet.numerics.wire_format import MalformedUpdate

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def sample() -> FlatTree:
    return flatten({"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "scalar": torch.randn(())})


@st.composite
def trees(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
    return {
        n: torch.ones(draw(st.lists(st.integers(0, 4), max_size=3)), dtype=draw(st.sampled_from(DTYPES))) for n in names
    }


@given(trees())
def test_every_tree_survives_the_round_trip_and_the_size_is_known_before(tree):
    data = wire_format.encode(tree)
    back = wire_format.decode(data, Schema.of(tree), wire_format.digest(data))
    assert len(data) == wire_format.size(Schema.of(tree))
    assert list(back) == list(tree)
    for name, leaf in tree.items():
        assert back[name].dtype == leaf.dtype and back[name].shape == leaf.shape and torch.equal(back[name], leaf)


def test_the_bytes_are_a_safetensors_file():
    tree = sample()
    theirs = safetensors.torch.load(wire_format.encode(tree))
    assert all(torch.equal(theirs[k], v) for k, v in tree.items())


def test_decoding_is_a_view_of_the_received_buffer():
    tree = sample()
    data = bytearray(wire_format.encode(tree))
    back = wire_format.decode(data, tree.schema)
    assert isinstance(back, FlatTree)
    start = len(data) - tree.schema.nbytes
    data[start : start + 4] = struct.pack("<f", 42.0)
    assert back["a.weight"][0, 0] == 42.0


def test_a_device_reads_the_schema_from_the_payload():
    tree = sample()
    assert wire_format.open_tree(wire_format.encode(tree)).schema == tree.schema


def edit(**changes):
    """A payload with an edited header, of unchanged total length where possible."""
    tree = sample()
    table = json.loads(wire_format.header(tree.schema)[8:])
    for name, value in changes.items():
        table[name.replace("_", ".")].update(value)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + wire_format.encode(tree)[len(wire_format.header(tree.schema)) :]


def renamed():
    tree = sample()
    return wire_format.encode({"a.weighs": tree["a.weight"], "a.bias": tree["a.bias"], "scalar": tree["scalar"]})


def reordered():
    tree = sample()
    return wire_format.encode({"a.bias": tree["a.bias"], "a.weight": tree["a.weight"], "scalar": tree["scalar"]})


CASES = {
    "truncated": [lambda g: g[:-1], lambda g: g[:3], lambda g: b"", lambda g: struct.pack("<Q", 9999) + g[8:]],
    "oversize": [lambda g: g + b"\0", lambda g: g + g],
    "format": [
        lambda g: struct.pack("<Q", 1 << 62) + g[8:],
        lambda g: g[:8] + b"\xff" * (len(g) - 8),
        lambda g: g[:8] + b"[" * (len(g) - 8),
        lambda g: b"\x80\x04cos\nsystem\n" + g,
    ],
    "names": [lambda g: renamed(), lambda g: reordered()],
    "shape": [lambda g: edit(a_weight={"shape": [4, 3]}), lambda g: edit(a_weight={"shape": [10**12]})],
    "dtype": [lambda g: edit(a_bias={"dtype": "I32"}), lambda g: edit(a_bias={"dtype": "object"})],
}


@pytest.mark.parametrize(("code", "make"), [(c, m) for c, makers in CASES.items() for m in makers])
def test_what_is_wrong_has_a_code(code, make):
    tree = sample()
    with pytest.raises(MalformedUpdate) as caught:
        wire_format.decode(make(wire_format.encode(tree)), tree.schema)
    assert caught.value.code == code


def test_a_flipped_bit_breaks_the_seal():
    tree = sample()
    data = bytearray(wire_format.encode(tree))
    seal = wire_format.digest(bytes(data))
    data[-1] ^= 1
    with pytest.raises(MalformedUpdate, match="digest"):
        wire_format.decode(data, tree.schema, seal)


@settings(max_examples=3 * settings.default.max_examples)
@given(st.data())
def test_mutated_bytes_are_refused_or_keep_their_shape(data):
    tree = sample()
    payload = bytearray(wire_format.encode(tree))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                payload[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del payload[at]
            case "insert":
                payload.insert(at, data.draw(st.integers(0, 255)))
        if not payload:
            break
    for reader in (lambda p: wire_format.decode(p, tree.schema), wire_format.open_tree):
        try:
            back = reader(bytes(payload))
        except MalformedUpdate:
            continue
        assert sum(v.numel() for v in back.values()) <= len(payload)


def test_a_schema_with_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        Schema((("a", Leaf((1,))), ("a", Leaf((2,)))))


def test_what_is_written_into_a_blank_is_encoded_already() -> None:
    schema = Schema((("a", Leaf((3, 2))), ("b", Leaf((4,)))))
    made = wire_format.blank(schema)
    torch.sub(torch.arange(10.0), 3.5, out=made.flat)
    plain = FlatTree(schema, made.flat.clone())
    assert wire_format.encode(made) is made.payload and wire_format.encode(made) == wire_format.encode(plain)
    made.flat.mul_(2)
    assert torch.equal(wire_format.open_tree(wire_format.encode(made))["b"], 2 * plain["b"])
    assert isinstance(wire_format.encode(tree.scale(made, 2.0)), bytes), "another tree has a buffer of its own"
    with pytest.raises(ValueError, match="no flat payload"):
        wire_format.blank(Schema((("a", Leaf((3,))), ("b", Leaf((3,), torch.int64)))))
