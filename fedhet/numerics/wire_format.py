"""Trees as bytes: one safetensors buffer, its SHA-256, and a small header. The only place where bytes become tensors.

A payload is `8-byte header length | JSON header | raw little-endian data`, the safetensors format. A reader that
knows what to expect compares the header byte by byte with the one it would have written itself; then the tensors are
views of the received buffer and nothing is copied. Anything wrong is one exception, `MalformedUpdate`, with a code.
"""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
from functools import lru_cache

import safetensors.torch
import torch
from torch import Tensor

from fedhet.numerics.tree import FlatTree, Leaf, Schema, flatten
from fedhet.types import Tree

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
with warnings.catch_warnings():
    # torch warns once per process that a view of read-only bytes must not be written to; nothing here writes to one.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"0", dtype=torch.uint8)

HEADER_CAP = 1 << 20
"""Bytes of JSON header a reader is willing to parse."""


class MalformedUpdate(ValueError):
    """Bytes that are not the tree that was asked for. `code` is stable, `detail` is for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


@lru_cache(maxsize=256)
def header(schema: Schema) -> bytes:
    """The canonical first bytes of every payload with this schema (length prefix included)."""
    at, table = 0, {}
    for name, leaf in schema.leaves:
        table[name] = {"dtype": NAMES[leaf.dtype], "shape": list(leaf.shape), "data_offsets": [at, at + leaf.nbytes]}
        at += leaf.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def size(schema: Schema) -> int:
    """Bytes of a payload with this schema."""
    return len(header(schema)) + schema.nbytes


def blank(schema: Schema, room: memoryview | None = None) -> FlatTree:
    """A tree of one dtype inside its own payload, for numbers yet to come: what is written into it is encoded already.

    The payload is laid into `room`, bytes that may be written, if it is large enough. Raises ValueError for a schema of
    several dtypes, or without an element.
    """
    kind, start = schema.dtype, header(schema)
    if kind is None or not schema.size:
        raise ValueError(f"{len(schema)} tensors of several dtypes or no element have no flat payload")
    many = len(start) + schema.nbytes
    if room is not None and len(room) >= many:
        whole = torch.frombuffer(room, dtype=torch.uint8, count=many)
    else:
        whole = torch.empty(many, dtype=torch.uint8)
    payload = memoryview(whole.numpy())  # type: ignore[arg-type]
    payload[: len(start)] = start
    return FlatTree(schema, whole[len(start) :].view(kind), payload)


def encode(tree: Tree) -> bytes | memoryview:
    """A tree as one payload."""
    if isinstance(tree, FlatTree) and tree.payload is not None:
        return tree.payload
    schema = Schema.of(tree)
    leaves = [tree.flat] if isinstance(tree, FlatTree) else list(tree.values())
    return b"".join([header(schema), *(_raw(leaf) for leaf in leaves)])


def _raw(leaf: Tensor) -> memoryview:
    return memoryview(leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def digest(payload: bytes | bytearray | memoryview) -> str:
    """SHA-256 of a payload, in hex."""
    return hashlib.sha256(payload).hexdigest()


def decode(payload: bytes | bytearray | memoryview, expects: Schema, sha256: str = "") -> Tree:
    """The tree in a payload, as read-only views of it. `sha256` is checked if given.

    Raises MalformedUpdate with code `oversize`, `truncated`, `digest`, `format`, `names`, `shape` or `dtype`.
    """
    payload = memoryview(payload)
    if len(payload) != size(expects):
        _explain(payload, expects)
        raise MalformedUpdate(
            "oversize" if len(payload) > size(expects) else "truncated",
            f"{len(payload)} bytes where {size(expects)} were expected",
        )
    if sha256 and digest(payload) != sha256:
        raise MalformedUpdate("digest", "the SHA-256 of the payload is not the one announced")
    start = header(expects)
    if payload[: len(start)] != start:
        _explain(payload, expects)
        raise MalformedUpdate("format", "the header is not in canonical form")
    return _views(payload[len(start) :], expects)


def open_tree(payload: bytes | bytearray | memoryview, sha256: str = "") -> Tree:
    """The tree in a payload whose schema the reader does not know: what a device does with the server's word.

    Raises MalformedUpdate unless the payload is exactly what `encode` writes.
    """
    payload = memoryview(payload)
    if len(payload) < 8:
        raise MalformedUpdate("truncated", f"{len(payload)} bytes are not a payload")
    (length,) = struct.unpack("<Q", payload[:8])
    if length > HEADER_CAP:
        raise MalformedUpdate("format", f"header of {length} bytes; at most {HEADER_CAP} are read")
    return decode(payload, _schema(bytes(payload[8 : 8 + length])), sha256)


@lru_cache(maxsize=256)
def _schema(text: bytes) -> Schema:
    kinds = {name: kind for kind, name in NAMES.items()}
    try:
        table = json.loads(text)
        leaves = tuple((name, Leaf(tuple(map(int, v["shape"])), kinds[v["dtype"]])) for name, v in table.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise MalformedUpdate("format", f"header is not a table of tensors: {type(error).__name__}") from None
    if any(size < 0 for _, leaf in leaves for size in leaf.shape):
        raise MalformedUpdate("format", "a tensor has a negative size")
    return Schema(leaves)


def _views(body: memoryview, schema: Schema) -> Tree:
    kind = schema.dtype
    if kind is not None and schema.size:
        return FlatTree(schema, torch.frombuffer(body, dtype=kind))
    at, leaves = 0, {}
    for name, leaf in schema.leaves:
        part = body[at : at + leaf.nbytes]
        flat = torch.frombuffer(part, dtype=torch.uint8).clone().view(leaf.dtype) if len(part) else torch.empty(0)
        leaves[name] = flat.to(leaf.dtype).view(leaf.shape)
        at += leaf.nbytes
    return leaves


def _explain(payload: memoryview, expects: Schema) -> None:
    """Raise the most telling MalformedUpdate for a payload whose header or size is not the expected one."""
    if len(payload) < 8:
        raise MalformedUpdate("truncated", f"{len(payload)} bytes are not a payload")
    (length,) = struct.unpack("<Q", payload[:8])
    if length > HEADER_CAP:
        raise MalformedUpdate("format", f"header of {length} bytes; at most {HEADER_CAP} are read")
    if length > len(payload) - 8:
        raise MalformedUpdate("truncated", f"header of {length} bytes in a payload of {len(payload)}")
    try:
        table = json.loads(bytes(payload[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise MalformedUpdate("format", f"header is not JSON: {str(error)[:80]}") from None
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise MalformedUpdate("format", "header is not a table of tensors")
    names = [n for n in table if n != "__metadata__"]
    if names != list(expects):
        odd = sorted(set(names) ^ set(expects))[:3]
        raise MalformedUpdate("names", f"tensor names differ: {odd}" if odd else "tensor order differs")
    for name, leaf in expects.leaves:
        if table[name].get("shape") != list(leaf.shape):
            raise MalformedUpdate("shape", f"{name}: {str(table[name].get('shape'))[:60]}, expected {list(leaf.shape)}")
        if table[name].get("dtype") != NAMES[leaf.dtype]:
            raise MalformedUpdate(
                "dtype", f"{name}: {str(table[name].get('dtype'))[:20]}, expected {NAMES[leaf.dtype]}"
            )


def save(tree: Tree, path: str) -> None:
    """A tree as a safetensors file that any reader of the format opens."""
    safetensors.torch.save_file({k: v.detach().clone().contiguous() for k, v in tree.items()}, path)


def load(path: str) -> Tree:
    """The tree in a safetensors file of our own (checkpoints, memories), flat if its dtypes agree."""
    return flatten(safetensors.torch.load_file(path))
