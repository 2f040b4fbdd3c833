"""Replay of the event log: every job has one outcome, and an inconsistent log is refused with its line."""

import itertools
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhet.report import ReportError, event_replay
from fedhet.report.event_replay import Story
from fedhet.report.run_reader import Row, document, lines
from fedhet.report.staleness_chart import bins
from fedhet.report.update_accounting import ACCOUNTS, Ledger, from_result


def fold(rows, path):
    return Story.of(Row(path, k, row) for k, row in enumerate(rows, 1))


def assign(job, client, t=0.0, version=0):
    return {"t": t, "event": "assign", "job": job, "client": client, "version": version, "turn": 0, "steps": 10}


def arrived(job, client, t, weight=1.0):
    return {"t": t, "event": "arrived", "job": job, "client": client, "version": 0, "seconds": t, "weight": weight}


def combined(jobs, t, staleness, scales, version=1):
    return {"t": t, "event": "combined", "version": version, "jobs": jobs, "staleness": staleness, "scales": scales}


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "fedcompass"])
@pytest.mark.parametrize("seed", range(3))
def test_the_ledger_adds_up_and_agrees_with_what_the_run_counted(fake_run, strategy, seed):
    folder = fake_run(strategy=strategy, seed=seed)
    told = Story.of(lines(folder / "events.jsonl"))
    stated = from_result(document(folder / "result.json"), told.ledger)
    assert told.ledger.adds_up and stated.adds_up
    assert told.ledger.differences(stated) == []
    assert told.ledger.total("accepted") > 0 and told.ledger.total("failed") > 0
    assert sum(d.updates for d in told.discounts.values()) == told.ledger.total("accepted")
    assert sum(c.tasks for c in told.clients.values()) == told.ledger.dispatched == len(told.jobs)


def test_every_way_to_end_has_its_account_and_reason(tmp_path):
    rows = [{"t": 0.0, "event": "started", "clients": 7, "method": "m"}]
    rows += [assign(k, k) for k in range(7)]
    rows += [arrived(0, 0, 1.0), arrived(1, 1, 1.0), arrived(2, 2, 2.0)]
    rows += [{"t": 2.0, "event": "failed", "job": 3, "client": 3, "reason": "client error: boom"}]
    rows += [{"t": 2.0, "event": "rejected", "job": 4, "client": 4, "code": "norm", "detail": "x"}]
    rows += [{"t": 2.0, "event": "failed", "job": 5, "client": 5, "reason": "rejected: non_finite"}]
    rows += [combined([0], 2.0, [0], [1.0]), {"t": 3.0, "event": "dropped", "jobs": [1], "reason": "stale"}]
    rows += [{"t": 3.0, "event": "stopped", "reason": "enough"}]
    told = fold(rows, tmp_path / "events.jsonl")
    assert {name: dict(told.ledger.accounts[name]) for name in ACCOUNTS} == {
        "accepted": {"": 1},
        "late": {"stale": 1},
        "rejected": {"norm": 1, "non_finite": 1},
        "failed": {"client error": 1},
        "buffered": {"": 1},
        "unfinished": {"": 1},
    }
    assert told.ledger.dispatched == 7 and told.ledger.adds_up
    assert told.stopped == "enough" and told.end == 3.0
    assert [job.reason for job in told.jobs][3] == "client error: boom"


def test_a_result_that_counts_otherwise_is_found_out(tmp_path):
    told = fold([assign(0, 0), arrived(0, 0, 1.0), combined([0], 1.0, [0], [1.0])], tmp_path)
    stated = from_result(Row(tmp_path, None, {"updates": {"dispatched": 2, "accepted": 1, "late": 1}}), told.ledger)
    assert stated.adds_up
    assert told.ledger.differences(stated) == [
        "dispatched: 1 in the events, 2 in the result",
        "late: 0 in the events, 1 in the result",
    ]
    assert not Ledger(dispatched=1).adds_up


def test_weight_staleness_and_time_belong_to_the_client_that_earned_them(tmp_path):
    rows = [assign(0, 5), assign(1, 6), arrived(0, 5, 2.0, 30.0), arrived(1, 6, 4.0, 10.0)]
    rows += [assign(2, 5, 4.0), combined([0, 1], 4.0, [3, 1], [0.5, 0.75]), arrived(2, 5, 10.0, 30.0)]
    told = fold(rows, tmp_path)
    five, six = told.clients[5], told.clients[6]
    assert (five.tasks, five.arrived, five.accepted, five.seconds, five.weight, five.staleness) == (
        2,
        2,
        1,
        8.0,
        30.0,
        3,
    )
    assert (six.seconds, six.weight, six.staleness) == (4.0, 10.0, 1)
    assert told.discounts[3].total == 0.5 and told.discounts[1].low == 0.75


def test_a_group_note_marks_the_next_job_of_its_client(tmp_path):
    note = {"t": 1.0, "event": "note", "kind": "group", "group": 2, "client": 5, "steps": 28}
    rows = [assign(0, 5), {**note, "expected": 24.0, "latest": 28.8}, assign(1, 5, 1.0), assign(2, 5, 3.0)]
    told = fold(rows, tmp_path)
    assert [job.group for job in told.jobs] == [None, 2, None]
    assert (told.groups[2].expected, told.groups[2].latest, told.groups[2].members) == (24.0, 28.8, {5: 28})
    assert fold([{**note, "due": 24.0}], tmp_path).groups[2].expected == 24.0
    assert fold([{**note, "due": float("inf")}], tmp_path).groups[2].expected is None


def test_an_answer_after_its_groups_latest_second_is_counted_and_says_by_how_much(tmp_path):
    note = {"t": 0.0, "event": "note", "kind": "group", "group": 2, "steps": 28, "due": 4.0, "latest": 5.0}
    rows = [{**note, "client": c} for c in range(3)]
    rows += [assign(c, c) for c in range(4)]
    rows += [arrived(0, 0, 4.5), arrived(1, 1, 5.0), arrived(2, 2, 7.25), arrived(3, 3, 9.0)]
    told = fold(rows, tmp_path)
    assert [job.overdue for job in told.jobs] == [0.0, 0.0, pytest.approx(2.25), 0.0]
    assert (told.overdue, told.grouped_answers) == (1, 3)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (arrived(9, 0, 1.0), "job 9 is not open"),
        ({"t": 1.0, "event": "dropped", "jobs": [0, 9], "reason": "late"}, "job 9 is not open"),
        (assign(0, 0, 1.0), "job 0 is assigned twice"),
        (combined([0], 1.0, [0, 1], [1.0]), "do not go together"),
        (combined([0], 1.0, [0.5], [1.0]), "'staleness' is"),
        (combined([0], 1.0, [0], ["1"]), "'scales' is"),
        ({"t": float("nan"), "event": "woke"}, "'t' is nan"),
        ({"t": -1.0, "event": "woke"}, "'t' is -1.0"),
        ({"t": "soon", "event": "woke"}, "'t' is 'soon'"),
        ({"event": "woke"}, "'t' is None"),
        ({"t": 1.0}, "'event' is None"),
        ({"t": 1.0, "event": "assign", "job": True, "client": 1, "version": 0}, "'job' is True"),
    ],
)
def test_a_row_that_cannot_be_is_refused_with_its_file_and_line(row, problem, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(assign(0, 0)) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ReportError, match=r"events\.jsonl, line 2: ") as error:
        Story.of(lines(path))
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [('{"t": 1', "not JSON"), ("[1]", "not a JSON object"), ("\xff", "not JSON"), ("[" * 100_000, "not JSON")],
)
def test_a_line_that_is_not_an_object_is_refused(text, problem, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"t": 0, "event": "woke"}\n' + text.encode("latin-1") + b"\n")
    with pytest.raises(ReportError, match=r"events\.jsonl, line 2: ") as error:
        Story.of(lines(path))
    assert problem in str(error.value)


def test_what_is_kept_does_not_grow_with_the_log(monkeypatch, tmp_path):
    monkeypatch.setattr(event_replay, "MAX_JOBS", 10)
    monkeypatch.setattr(event_replay, "MAX_COMBINATIONS", 5)

    def rows(n):
        for k in range(n):
            yield Row(tmp_path, k, assign(k, k % 3, float(k)))
            yield Row(tmp_path, k, arrived(k, k % 3, k + 0.5))
            yield Row(tmp_path, k, combined([k], k + 0.5, [0], [1.0], k + 1))

    def peak(n):
        tracemalloc.start()
        told = Story.of(rows(n))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert told.ledger.dispatched == told.combined == n
        assert len(told.jobs) == 10 and len(told.combinations) == 5
        return size

    peak(10)
    assert peak(3000) < peak(300) + 20_000


@settings(max_examples=settings.default.max_examples // 2)
@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=80), st.integers(1, 40))
def test_bins_hold_every_update_once_at_its_staleness(pairs, most):
    discounts = {}
    for staleness, scale in pairs:
        discounts.setdefault(staleness, event_replay.Discount()).add(scale)
    shown = bins(discounts, most)
    assert len(shown) <= most
    assert sum(b.discount.updates for b in shown) == len(pairs)
    for b in shown:
        inside = [scale for staleness, scale in pairs if b.low <= staleness <= b.high]
        assert b.discount.updates == len(inside)
        assert b.mean == pytest.approx(sum(inside) / len(inside))
    assert all(x.high < y.low for x, y in itertools.pairwise(shown))
