"""Nothing a client sends gets past the gate unchecked: every fault has its code, and the run does not feel it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.work.sgd import Sgd
from fedhet import message as records
from fedhet import wire
from fedhet.compose import Method
from fedhet.experiment import Experiment
from fedhet.gate import Gate, Rejected
from fedhet.record import read_rows
from fedhet.server import Limits
from fedhet.testing import QuadraticWorld, equal_clients
from fedhet.tree import flatten
from fedhet.types import Budget, Job, Update
from fedhet.wire import MalformedUpdate
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.schedules.sync import Sync
from strategies.spaces.full import Full

WORLD = QuadraticWorld([1.0] * 3, [0.0, 1.0, 2.0], [10, 20, 30])
CLIENTS = equal_clients(WORLD)
DELTA = flatten({"w": torch.randn(4, 3), "b": torch.randn(3)})
JOB = Job(7, 1, 4, 0, Budget(5), 0.0)


def sent(delta=DELTA, job=JOB, weight=20.0, metrics=None, seal=False, code=""):
    return records.read_answer(records.answer(Update(job, delta, weight, metrics=metrics or {}), code=code, seal=seal))


def check(answer, gate=None, sender=1, inflight=None):
    return (gate or Gate()).check(answer, sender, {7: JOB} if inflight is None else inflight, DELTA.schema, CLIENTS)


def changed(at, value):
    flat = DELTA.flat.clone()
    flat[at] = value
    return type(DELTA)(DELTA.schema, flat)


def test_a_good_answer_passes_unchanged():
    update = check(sent(metrics={"loss": 0.5}))
    assert isinstance(update, Update) and torch.equal(update.delta.flat, DELTA.flat)
    assert update.weight == 20 and update.metrics == {"loss": 0.5} and update.job is JOB


@pytest.mark.parametrize(
    ("code", "answer", "more"),
    [
        ("unsolicited", sent(), {"inflight": {}}),
        ("unsolicited", sent(job=replace(JOB, id=8)), {}),
        ("sender", sent(), {"sender": 2}),
        ("sender", sent(job=replace(JOB, client=2)), {}),
        ("version", sent(job=replace(JOB, version=3)), {}),
        ("weight", sent(weight=-15.0), {}),
        ("weight", sent(weight=0.0), {}),
        ("weight", sent(weight=21.0), {}),
        ("weight", sent(weight=5.5), {"gate": Gate(max_weight=5)}),
        ("non_finite", sent(changed(0, float("nan"))), {}),
        ("non_finite", sent(changed(-1, float("inf"))), {}),
        ("non_finite", sent(changed(5, 1e30)), {}),
        ("norm", sent(changed(5, 1e10)), {"gate": Gate(max_norm=1e6)}),
        ("digest", sent(), {"gate": Gate(sealed=True)}),
        ("code", sent(code="x"), {"gate": Gate(code="y")}),
        ("shape", sent(flatten({"w": torch.randn(3, 4), "b": torch.randn(3)})), {}),
        ("names", sent(flatten({"w": torch.randn(4, 3), "c": torch.randn(3)})), {}),
        ("names", sent(flatten({"b": torch.randn(3), "w": torch.randn(4, 3)})), {}),
        ("dtype", sent({"w": torch.randn(4, 3), "b": torch.ones(3, dtype=torch.int32)}), {}),
        ("dtype", sent(flatten({"w": torch.randn(4, 3).double(), "b": torch.randn(3).double()})), {}),
        ("shape", sent(flatten({"w": torch.randn(1), "b": torch.randn(3)})), {}),
    ],
)
def test_every_fault_has_its_code(code, answer, more):
    verdict = check(answer, **more)
    assert isinstance(verdict, Rejected) and verdict.code == code, verdict


def head(**fields):
    good = {"job": 7, "client": 1, "version": 4, "weight": 1.0, "metrics": {}, "code": ""}
    text = json.dumps({**good, **fields})
    return with_header(text)


def with_header(text):
    payload = records.parcel(wire.encode(DELTA))
    return RecordDict({"fedhet": ConfigRecord({"update": text}), "payload": payload})


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("weight", head(weight=math.nan)),
        ("weight", head(weight="many")),
        ("weight", head(weight=True)),
        ("weight", head(weight=10**400)),
        ("metrics", head(metrics={"loss": math.inf})),
        ("metrics", head(metrics={"loss": "low"})),
        ("metrics", head(metrics=[1, 2])),
        ("metrics", head(metrics={str(n): 0.0 for n in range(65)})),
        ("format", head(job="7")),
        ("format", head(client=1.0)),
        ("format", with_header("[" * 60_000)),
        ("format", with_header("{}")),
        ("format", with_header("no json")),
        ("format", with_header(" " * 100_000)),
        ("format", RecordDict()),
        ("format", RecordDict({"fedhet": ConfigRecord({})})),
        ("format", RecordDict({"payload": ArrayRecord({"tree": Array(np.zeros(3))})})),
    ],
)
def test_headers_are_not_believed_either(code, content):
    with pytest.raises(MalformedUpdate) as caught:
        records.read_answer(content)
    assert caught.value.code == code


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200), st.binary(max_size=400))
def test_garbage_never_crashes_the_gate(text, payload):
    text = text if isinstance(text, str) else text.decode("latin1")
    for header in (text, json.dumps({"job": 7, "client": 1, "version": 4, "weight": 1, "metrics": {}})):
        content = RecordDict({"fedhet": ConfigRecord({"update": header}), "payload": records.parcel(payload)})
        try:
            verdict = check(records.read_answer(content))
        except MalformedUpdate:
            continue
        assert isinstance(verdict, Rejected)


def test_a_client_that_keeps_failing_is_suspended_and_can_come_back():
    gate = Gate(suspend_after=3)
    assert [gate.strike(1) for _ in range(4)] == [False, False, True, False]
    assert gate.suspended == {1} and not gate.strike(2)
    gate.pardon(1)
    assert not gate.suspended and not gate.strike(1)
    check(sent(), gate)
    assert [gate.strike(1) for _ in range(3)] == [False, False, True], "an accepted update wipes the slate"


class Poison(Sgd):
    """Client 1 sends NaN in every job."""

    def run(self, model, data, job, memory):
        metrics = super().run(model, data, job, memory)
        if job.client == 1:
            model.params.fill_(float("nan"))
        return metrics


def test_a_poisoned_client_changes_nothing_for_the_others_and_is_suspended(tmp_path):
    def run(world, work, folder, versions=8):
        m = Method(Sync(), Full(), Mean(), work, Fixed(steps=2), name="t")
        return Experiment(m, equal_clients(world), world, Limits(versions=versions)).run(tmp_path / folder)

    poisoned = run(WORLD, Poison(lr=0.1), "poisoned")
    rows = read_rows(tmp_path / "poisoned" / "events.jsonl")
    assert poisoned.row["updates"]["rejected"] == {"non_finite": 5}
    assert [r["client"] for r in rows if r["event"] == "left"] == [1]
    clean = run(QuadraticWorld([1.0, 1.0], [0.0, 2.0], [10, 30]), Sgd(lr=0.1), "clean")
    assert poisoned.row["weights_sha256"] == clean.row["weights_sha256"]
