"""One client sends a faulty update in every job of a run: the error code, and no effect on the model.

Faults are put between a client and the server, so that devices, messages, gate and engine are the real ones. The model
must be the one of the same run without that client, bit for bit.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from clients.work.sgd import Sgd
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.flower.messages import payload_record
from fedhet.numerics import wire_format
from fedhet.numerics.tree import flatten
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.runs.result import Result
from fedhet.simulation.virtual_grid import VirtualGrid
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from fedhet.types import Tree
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

VERSIONS, FAULTY, NODE = 3, 1, 3
"""The faulty client is in the middle, its node id on the virtual grid is 3."""

OPTIMA = [[0.0, 1.0, 3.0], [5.0, 5.0, 5.0], [2.0, -1.0, 4.0]]
ALL = QuadraticWorld([1.0] * 3, OPTIMA, [10, 20, 30])
OTHERS = QuadraticWorld([1.0] * 2, [OPTIMA[0], OPTIMA[2]], [10, 30])

Fault = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]
Tamper = Callable[[Message], list[Message]]


def run(world: QuadraticWorld, folder: Path, **gate: Any) -> Result:
    method = Method(Sync(), Full(), Mean(), Sgd(lr=0.1), Fixed(steps=2), name="t")
    return Experiment(method, equal_clients(world), world, Limits(versions=VERSIONS), gate=gate).run(folder)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of the run in which the faulty client is not."""
    return str(run(OTHERS, tmp_path_factory.mktemp("clean") / "run").row["weights_sha256"])


@pytest.fixture
def tampering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tamper], None]:
    """Put something between the grid and the server, which sees every reply."""
    original = VirtualGrid.pull_messages

    def install(tamper: Tamper) -> None:
        def pull(self: VirtualGrid, ids: Any) -> Iterator[Message]:
            for reply in original(self, ids):
                yield from tamper(reply)

        monkeypatch.setattr(VirtualGrid, "pull_messages", pull)

    return install


def forged(reply: Message, fault: Fault) -> Message:
    """The reply with another header and payload."""
    content = reply.content
    head = json.loads(str(content["fedhet"]["update"]))
    payload = bytes(content["payload"]["tree"].data)
    head, payload = fault(head, payload)
    seal = {"sha256": head.pop("sha256")} if "sha256" in head else {}
    reply.content = RecordDict(
        {"fedhet": ConfigRecord({"update": json.dumps(head), **seal}), "payload": payload_record(payload)}
    )
    return reply


def payload_of(change: Callable[[torch.Tensor], Tree]) -> Fault:
    """A fault that sends another tree instead of {"x": (3,) float64}."""

    def fault(head: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        (flat,) = wire_format.open_tree(payload).values()
        return head, wire_format.encode(flatten(change(flat.clone())))

    return fault


def element(at: int, value: float) -> Fault:
    def change(x: torch.Tensor) -> Tree:
        x[at] = value
        return {"x": x}

    return payload_of(change)


def raw(change: Callable[[bytes], bytes]) -> Fault:
    return lambda head, payload: (head, change(payload))


def header(**fields: Any) -> Fault:
    """Fields of the header replaced; a callable gets the old value."""
    return lambda head, payload: (
        {**head, **{k: v(head[k]) if callable(v) else v for k, v in fields.items()}},
        payload,
    )


def claims(**fields: Any) -> Fault:
    """A payload whose own header says something else of its tensor, at the same length where that can be."""

    def change(payload: bytes) -> bytes:
        (length,) = struct.unpack("<Q", payload[:8])
        table = json.loads(payload[8 : 8 + length])
        table["x"].update(fields)
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + payload[8 + length :]

    return raw(change)


def flipped(head: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """A bit of a sealed payload turns on its way."""
    return {**head, "sha256": wire_format.digest(payload)}, payload[:-1] + bytes([payload[-1] ^ 1])


class Bomb:
    """Unpickled, it would leave a file."""

    path = ""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (Path.touch, (Path(self.path),))  # type: ignore[return-value]


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, dtype=object), allow_pickle=True)
    return file.getvalue()


FAULTS: dict[str, tuple[str, Fault]] = {
    "NaN first": ("non_finite", element(0, math.nan)),
    "NaN last": ("non_finite", element(-1, math.nan)),
    "minus infinity": ("non_finite", element(1, -math.inf)),
    "too large to square": ("non_finite", element(1, 1e300)),
    "norm 1e30": ("norm", element(2, 1e30)),
    "float32": ("dtype", payload_of(lambda x: {"x": x.float()})),
    "float16": ("dtype", payload_of(lambda x: {"x": x.half()})),
    "int8": ("dtype", payload_of(lambda x: {"x": x.to(torch.int8)})),
    "complex numbers by name": ("dtype", claims(dtype="C64")),
    "shape (1,)": ("shape", payload_of(lambda x: {"x": x[:1]})),
    "turned": ("shape", payload_of(lambda x: {"x": x[None, :]})),
    "a trillion elements": ("shape", claims(shape=[10**12])),
    "minus three elements": ("shape", claims(shape=[-3])),
    "renamed": ("names", payload_of(lambda x: {"y": x})),
    "one more": ("names", payload_of(lambda x: {"x": x, "y": x})),
    "no name": ("names", payload_of(lambda x: {"": x})),
    "twice the bytes": ("oversize", raw(lambda p: p + p)),
    "one byte short": ("truncated", raw(lambda p: p[:-1])),
    "empty": ("truncated", raw(lambda p: b"")),
    "a header without end": ("format", raw(lambda p: struct.pack("<Q", 1 << 62) + p[8:])),
    "offsets elsewhere": ("format", claims(data_offsets=[8, 32])),
    "numpy objects": ("format", raw(lambda p: npy([1, "two"]))),
    "zipped zeros": ("format", raw(lambda p: zlib.compress(bytes(10**7)))),
    "weight -15": ("weight", header(weight=-15.0)),
    "weight 0": ("weight", header(weight=0)),
    "weight NaN": ("weight", header(weight=math.nan)),
    "weight 1e300": ("weight", header(weight=1e300)),
    "weight true": ("weight", header(weight=True)),
    "one sample too many": ("weight", header(weight=21.0)),
    "an infinite metric": ("metrics", header(metrics={"loss": math.inf})),
    "another's job": ("sender", header(job=lambda job: job + 1)),
    "another's name": ("sender", header(client=2)),
    "a job long done": ("unsolicited", header(job=-1)),
    "an older model": ("version", header(version=lambda v: v - 1)),
    "a bit turned": ("digest", flipped),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refused_by_its_code_and_leaves_no_trace(
    name: str, without: str, tampering: Callable[[Tamper], None], tmp_path: Path
) -> None:
    code, fault = FAULTS[name]
    tampering(lambda reply: [forged(reply, fault) if reply.metadata.src_node_id == NODE else reply])
    result = run(ALL, tmp_path / "run")
    assert result.row["updates"]["rejected"] == {code: VERSIONS}
    assert result.row["weights_sha256"] == without
    rows = [row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "rejected"]
    assert [(row["client"], row["code"]) for row in rows] == [(FAULTY, code)] * VERSIONS


def test_a_pickle_is_bytes_and_nothing_else(
    without: str, tampering: Callable[[Tamper], None], tmp_path: Path
) -> None:  # fmt: skip
    Bomb.path = str(tmp_path / "bang")
    fault = raw(lambda p: pickle.dumps(Bomb()))
    tampering(lambda reply: [forged(reply, fault) if reply.metadata.src_node_id == NODE else reply])
    result = run(ALL, tmp_path / "run")
    assert sum(result.row["updates"]["rejected"].values()) == VERSIONS
    assert result.row["weights_sha256"] == without
    assert not (tmp_path / "bang").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "bang").exists(), "it would have worked"


def test_another_clients_bytes_are_refused_where_copies_are_looked_for(
    without: str, tampering: Callable[[Tamper], None], tmp_path: Path
) -> None:
    seen: dict[int, bytes] = {}

    def tamper(reply: Message) -> list[Message]:
        seen[reply.metadata.src_node_id] = bytes(reply.content["payload"]["tree"].data)
        copy = reply.metadata.src_node_id == NODE
        return [forged(reply, raw(lambda p: seen[NODE - 1])) if copy else reply]

    tampering(tamper)
    result = run(ALL, tmp_path / "run", reject_duplicates=True)
    assert result.row["updates"]["rejected"] == {"clone": VERSIONS}
    assert result.row["weights_sha256"] == without
    assert run(ALL, tmp_path / "unwatched").row["updates"]["rejected"] == {}


def test_an_answer_that_comes_twice_counts_once(tampering: Callable[[Tamper], None], tmp_path: Path) -> None:
    once = run(ALL, tmp_path / "once").row["weights_sha256"]
    tampering(lambda reply: [reply, reply])
    twice = run(ALL, tmp_path / "twice")
    assert twice.row["weights_sha256"] == once
    assert twice.row["updates"]["accepted"] == 3 * VERSIONS and twice.row["updates"]["rejected"] == {}


def test_an_update_of_nothing_but_zeros_is_an_update(tampering: Callable[[Tamper], None], tmp_path: Path) -> None:
    zeros = payload_of(lambda x: {"x": torch.zeros_like(x)})
    tampering(lambda reply: [forged(reply, zeros)])
    result = run(ALL, tmp_path / "run", reject_duplicates=True, clip=3.0)
    assert result.row["updates"]["accepted"] == 3 * VERSIONS


def test_a_suspended_client_is_back_after_its_time(tampering: Callable[[Tamper], None], tmp_path: Path) -> None:
    """It fails in its first job only; rounds take two seconds."""
    bad = iter([True])

    def tamper(reply: Message) -> list[Message]:
        faulty = reply.metadata.src_node_id == NODE and next(bad, False)
        return [forged(reply, element(0, math.nan)) if faulty else reply]

    tampering(tamper)
    run(ALL, tmp_path / "run", suspend_after=1, suspend_seconds=1.5)
    rows = read_rows(tmp_path / "run" / "events.jsonl")
    fate = [(r["event"], r["t"]) for r in rows if r["event"] in ("left", "joined") and r["client"] == FAULTY]
    assert fate == [("left", 2.0), ("joined", 3.5)]
    assert [r["clients"] for r in rows if r["event"] == "combined"] == [[0, 2], [0, 2], [0, 1, 2]]
