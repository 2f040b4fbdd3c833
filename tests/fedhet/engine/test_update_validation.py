"""The gate checks every field of an update: each fault has its code, and does not affect the run."""

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
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.flower import messages as records
from fedhet.numerics import wire_format
from fedhet.numerics.tree import flatten
from fedhet.numerics.wire_format import MalformedUpdate
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Update
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
    payload = records.payload_record(wire_format.encode(DELTA))
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


@settings(max_examples=3 * settings.default.max_examples)
@given(st.binary(max_size=200) | st.text(max_size=200), st.binary(max_size=400))
def test_garbage_never_crashes_the_gate(text, payload):
    text = text if isinstance(text, str) else text.decode("latin1")
    for header in (text, json.dumps({"job": 7, "client": 1, "version": 4, "weight": 1, "metrics": {}})):
        content = RecordDict({"fedhet": ConfigRecord({"update": header}), "payload": records.payload_record(payload)})
        try:
            verdict = check(records.read_answer(content))
        except MalformedUpdate:
            continue
        assert isinstance(verdict, Rejected)


def test_a_client_that_keeps_failing_is_suspended_and_can_come_back():
    gate = Gate(suspend_after=3)
    assert [gate.record_violation(1) for _ in range(4)] == [False, False, True, False]
    assert set(gate.suspended) == {1} and not gate.record_violation(2)
    assert check(sent(), gate).code == "suspended"
    gate.clear_violations(1)
    assert not gate.suspended and not gate.record_violation(1)


def test_good_conduct_is_remembered_and_so_is_bad():
    """Twenty accepted updates forgive one rejection: every other update being bad is not made good by the rest."""
    gate = Gate(suspend_after=3, clear_violation_after=20)
    gate.record_violation(1)
    for _ in range(20):
        assert isinstance(check(sent(), gate), Update)
    assert not gate.violations
    fates = []
    for _ in range(4):
        fates.append(gate.record_violation(1))
        check(sent(), gate)
    assert fates == [False, False, False, True]


def test_lateness_copies_and_haste_are_counted_but_not_held_against_a_client():
    gate = Gate(suspend_after=1)
    assert not any(gate.record_violation(1, code) for code in ("unsolicited", "quota", "clone", "suspended", "member"))
    assert gate.record_violation(1, "shape")
    assert gate.rejections[1]["quota"] == gate.rejections[1]["shape"] == 1


def test_a_suspension_ends_at_its_time():
    gate = Gate(suspend_after=1, suspend_seconds=10.0)
    assert gate.next_release is None
    assert gate.record_violation(1, "shape", 5.0) and gate.record_violation(2, "shape", 7.0)
    assert gate.next_release == 15.0 and gate.release(14.9) == []
    assert gate.release(15.0) == [1] and gate.next_release == 17.0
    assert isinstance(check(sent(), gate), Update)
    forever = Gate(suspend_after=1)
    forever.record_violation(1, "shape", 5.0)
    assert forever.next_release is None and forever.release(1e9) == []


def test_what_a_gate_learned_survives_as_json():
    gate = Gate(suspend_after=2, suspend_seconds=9.0, clip=3.0)
    gate.record_violation(1, "shape", 1.0)
    gate.record_violation(2, "dtype", 1.0)
    gate.record_violation(2, "dtype", 2.0)
    check(sent(), gate)
    other = Gate(suspend_after=2, suspend_seconds=9.0, clip=3.0)
    other.load(json.loads(json.dumps(gate.dump())))
    assert other == gate
    forever = Gate(suspend_after=1)
    forever.record_violation(3, "norm")
    other = Gate(suspend_after=1)
    other.load(json.loads(json.dumps(forever.dump())))
    assert other == forever


def test_the_same_bytes_from_two_clients_are_refused_the_second_time():
    gate = Gate(reject_duplicates=True)
    jobs = {7: JOB, 8: replace(JOB, id=8, client=2), 9: replace(JOB, id=9, client=2)}
    assert isinstance(check(sent(), gate), Update)
    twin = sent(job=jobs[8])
    verdict = gate.check(twin, 2, jobs, DELTA.schema, CLIENTS, {7: JOB})
    assert isinstance(verdict, Rejected) and verdict.code == "clone" and "client 1" in verdict.detail
    assert isinstance(gate.check(sent(changed(0, 0.0), jobs[9]), 2, jobs, DELTA.schema, CLIENTS, {7: JOB}), Update)
    assert isinstance(gate.check(twin, 2, jobs, DELTA.schema, CLIENTS, {}), Update), "the first was combined since"
    assert isinstance(check(sent(), Gate()), Update), "not looked for unless asked"


def test_updates_of_length_zero_are_no_copies():
    gate, zero = Gate(reject_duplicates=True), flatten({"w": torch.zeros(4, 3), "b": torch.zeros(3)})
    other = replace(JOB, id=8, client=2)
    assert isinstance(check(sent(zero), gate), Update)
    assert isinstance(gate.check(sent(zero, other), 2, {8: other}, DELTA.schema, CLIENTS, {7: JOB}), Update)


def test_one_client_fills_no_buffer_by_itself():
    gate, more = Gate(per_buffer=1), replace(JOB, id=8)
    verdict = gate.check(sent(job=more), 1, {8: more}, DELTA.schema, CLIENTS, {7: JOB})
    assert isinstance(verdict, Rejected) and verdict.code == "quota"
    others = {7: replace(JOB, client=2)}
    assert isinstance(gate.check(sent(job=more), 1, {8: more}, DELTA.schema, CLIENTS, others), Update)


def test_long_updates_are_cut_to_the_usual_length_by_their_scale():
    gate = Gate(clip=3.0)
    usual = float(torch.linalg.vector_norm(DELTA.flat))
    long = type(DELTA)(DELTA.schema, DELTA.flat * 100)
    assert check(sent(long), Gate(clip=3.0)).scale == 1.0, "nothing is known yet"
    for _ in range(20):
        assert check(sent(), gate).scale == 1.0
    update = check(sent(long), gate)
    assert update.scale * 100 * usual == pytest.approx(3 * usual, rel=1e-6)
    assert torch.equal(update.delta.flat, long.flat)
    assert max(gate.norms) == pytest.approx(3 * usual, rel=1e-6), "what was cut off moves no median"
    assert check(sent(), gate).scale == 1.0


def test_a_weight_counts_at_most_so_many_times_the_median_clients():
    """Declared samples are 10, 20 and 30."""
    gate, job = Gate(weight_medians=1.25), replace(JOB, client=2)
    assert gate.check(sent(job=job, weight=30.0), 2, {7: job}, DELTA.schema, CLIENTS).weight == 25.0
    assert check(sent(weight=20.0), gate).weight == 20.0


def test_an_enrolled_client_counts_as_approved_and_may_not_exceed_its_own_claim():
    """Approved samples are 10, 20 and 30; client 2 says that it has 90 by now."""
    gate, job = Gate(weight_medians="auto"), replace(JOB, client=2)
    judge = lambda weight: gate.check(sent(job=job, weight=weight), 2, {7: job}, DELTA.schema, CLIENTS)  # noqa: E731
    assert judge(31.0).code == "weight"
    gate.enrolled({2: 90.0}.get, lambda: [10, 20, 30])
    assert judge(30.0).weight == 30.0 and gate.bounded == {}
    assert judge(90.0).weight == 30.0 and gate.bounded == {2: (90.0, 30.0)}
    assert judge(91.0).code == "weight", "it says more than it says it has"


def test_with_enrolled_clients_ten_times_the_median_is_the_most_unless_it_is_said_otherwise():
    for bound, most in (("auto", 10.0), (None, 30.0), (15.0, 15.0)):
        gate, job = Gate(weight_medians=bound), replace(JOB, client=2)
        assert gate.check(sent(job=job, weight=30.0), 2, {7: job}, DELTA.schema, CLIENTS).weight == 30.0
        gate.enrolled({2: 30.0}.get, lambda: [1, 1, 30])
        assert gate.check(sent(job=job, weight=30.0), 2, {7: job}, DELTA.schema, CLIENTS).weight == most


@pytest.mark.parametrize(
    "bad",
    [
        {"max_norm": 0.0}, {"clip": -1.0}, {"per_buffer": 0}, {"suspend_after": -1}, {"clear_violation_after": 0},
        {"suspend_seconds": 0.0}, {"weight_medians": 0.0}, {"weight_medians": "lots"}, {"max_weight": -2.0},
    ],
)  # fmt: skip
def test_limits_out_of_range_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Gate(**bad)


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
