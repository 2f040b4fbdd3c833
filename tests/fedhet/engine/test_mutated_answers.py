"""Ten thousand mutated answers through decoding and the gate: no crash, no value that is not finite, no memory growth.

Mutations are drawn by counter-based streams: number 1234 is the same on every machine and can be looked at alone.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedhet.engine.update_validation import Gate, Rejected
from fedhet.flower import messages
from fedhet.numerics import wire_format
from fedhet.numerics.rng import stream
from fedhet.numerics.tree import Schema, flatten
from fedhet.numerics.wire_format import MalformedUpdate
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Update

COUNT, BATCH = 10_000, 500
CLIENTS = equal_clients(QuadraticWorld([1.0] * 3, np.zeros(3), [10, 20, 30]))
JOB = Job(7, 1, 4, 0, Budget(5), 0.0)
TREE = flatten({"w": torch.linspace(-1, 1, 20).reshape(4, 5), "b": torch.linspace(0, 1, 5)})
SCHEMA = Schema.of(TREE)
PAYLOAD = wire_format.encode(TREE)
HEAD = messages.answer(Update(JOB, TREE, 20.0, metrics={"loss": 0.5}), code="", seal=False).config_records["fedhet"][
    "update"
]
NUMBERS = (0, -1, 1, 1e30, -1e300, float("nan"), float("inf"), 2**63, 10**40, "7", None, True, [1], {"a": 1})

Spoil = Callable[[bytes, np.random.Generator], bytes]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(int(x) for x in rng.integers(0, len(data) + 1, 2))
    return data[:a] + data[b:] if rng.integers(2) else data[:b]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    at, more = int(rng.integers(len(data) + 1)), rng.bytes(int(rng.integers(1, 200)))
    return data[:at] + more + data[at:]


def swap(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of bytes moved elsewhere: the length stays."""
    a, b = sorted(int(x) for x in rng.integers(0, len(data) + 1, 2))
    return data[b:] + data[a:b] + data[:a]


def claim(data: bytes, rng: np.random.Generator) -> bytes:
    """The payload's own header names another dtype, shape, offset or length, small or huge."""
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    leaf = table[["w", "b"][int(rng.integers(2))]]
    huge = [int(x) for x in 10.0 ** rng.integers(0, 18, 2)]
    match int(rng.integers(4)):
        case 0:
            leaf["dtype"] = ["F64", "F16", "BF16", "I8", "BOOL", "C64", "object", 32, None][int(rng.integers(9))]
        case 1:
            leaf["shape"] = [huge, [4, 5, 1], [5, 4], [-4, -5], [], ["4", "5"], huge * 50][int(rng.integers(7))]
        case 2:
            leaf["data_offsets"] = [huge, [80, 0], [-8, 72], [0], "all"][int(rng.integers(5))]
        case _:
            table.update({f"t{i}": leaf for i in range(int(rng.integers(1, 400)))})
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    size = len(text) if rng.integers(4) else int(10.0 ** rng.integers(0, 19))
    return struct.pack("<Q", size) + text + data[8 + length :]


def poison(data: bytes, rng: np.random.Generator) -> bytes:
    """A payload in good order with one or more elements that are no usable numbers."""
    values = TREE.flat.clone()  # type: ignore[attr-defined]
    for _ in range(int(rng.integers(1, 4))):
        bad = (float("nan"), float("inf"), -float("inf"), 3e38, -1e30)
        values[int(rng.integers(len(values)))] = bad[int(rng.integers(5))]
    return data[: -SCHEMA.nbytes] + values.numpy().tobytes()


SPOILS: tuple[Spoil, ...] = (flip, cut, insert, swap, claim, poison)


def lie(text: str, rng: np.random.Generator) -> str:
    """The message's header: a field that is something else, missing or multiplied, or text that is no JSON."""
    fields = json.loads(text)
    names = list(fields)
    match int(rng.integers(5)):
        case 0:
            del fields[names[int(rng.integers(len(names)))]]
        case 1:
            fields["metrics"] = {f"m{i}": 0.0 for i in range(int(rng.integers(60, 3000)))}
        case 2:
            spoilt = bytearray(text.encode())
            spoilt[int(rng.integers(len(spoilt)))] = int(rng.integers(32, 127))
            return spoilt.decode()
        case 3:
            return text[: int(rng.integers(len(text)))] + "[{" * int(rng.integers(1, 40_000))
        case _:
            fields[names[int(rng.integers(len(names)))]] = NUMBERS[int(rng.integers(len(NUMBERS)))]
    return json.dumps(fields)


def spoilt(number: int) -> RecordDict:
    """The answer of this number; one in five has a bad header of the message as well, or instead."""
    rng = stream(0, "mutation", number)
    payload, head = PAYLOAD, str(HEAD)
    if rng.integers(5) == 0:
        head = lie(head, rng)
    if head == str(HEAD) or rng.integers(2):
        payload = SPOILS[number % len(SPOILS)](payload, rng)
    return RecordDict({"fedhet": ConfigRecord({"update": head}), "payload": messages.payload_record(payload)})


def verdict(number: int) -> str:
    """The code, or "accepted" for what is a well-formed update of finite numbers; anything else raises."""
    gate = Gate(suspend_after=0, reject_duplicates=bool(number % 2), clip=3.0 if number % 3 else None)
    try:
        answer = messages.read_answer(spoilt(number))
    except MalformedUpdate as error:
        return error.code
    found = gate.check(answer, 1, {7: JOB}, SCHEMA, CLIENTS, {})
    if isinstance(found, Rejected):
        return found.code
    assert Schema.of(found.delta) == SCHEMA and all(torch.isfinite(leaf).all() for leaf in found.delta.values())
    assert 0 < found.weight <= 20 and 0 < found.scale <= 1
    assert all(np.isfinite(value) for value in found.metrics.values())
    return "accepted"


@pytest.mark.parametrize("part", range(COUNT // BATCH))
def test_no_spoilt_answer_gets_past_the_gate_or_breaks_it(part: int) -> None:
    numbers = range(part * BATCH, (part + 1) * BATCH)
    seen = Counter(verdict(number) for number in numbers)
    assert {"format", "non_finite", "oversize", "truncated"} <= set(seen), seen
    assert seen["accepted"] < 0.3 * BATCH, "bits of numbers turn without a seal; most mutations must be seen"


def test_what_a_message_claims_takes_no_memory() -> None:
    """The largest messages here are of 80 kB; what they announce is up to 10^18 bytes."""
    contents = [(number, spoilt(number)) for number in range(600)]
    tracemalloc.start()
    try:
        for number, _ in contents:
            verdict(number)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def test_a_seal_finds_every_mutation_of_a_payload() -> None:
    seal = wire_format.digest(PAYLOAD)
    for number in range(1000):
        payload = SPOILS[number % len(SPOILS)](PAYLOAD, stream(0, "mutation", number))
        if payload != PAYLOAD:
            with pytest.raises(MalformedUpdate):
                wire_format.decode(payload, SCHEMA, seal)
