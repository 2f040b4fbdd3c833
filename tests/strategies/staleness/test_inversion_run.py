"""Gradient inversion in full runs: its notice, its notes in the event log, and resuming."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedhet.bases import AbstractTransform
from fedhet.config import composition
from fedhet.protocols import View
from fedhet.runs import runner
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.types import Memory, Tree

OVERRIDES = [
    "strategy=gradient_inversion", "fleet=linear_grid", "fleet.clients=4", "fleet.sec_per_step=0.5", "fleet.x=0.8",
    "fleet.jitter_cv=0.0", "schedule.window_seconds=1.0", "budget.steps=5", "work.batch=400",
    "model=mlp", "model.hidden=[6]", "stop.versions=9", "workers=0", "staleness.images=4", "staleness.iterations=4",
    "staleness.warm_iterations=2", "staleness.accept=10.0", "staleness.unique.peers=2",
]  # fmt: skip


def experiment(*more: str) -> Experiment:
    return Experiment.of(composition.resolved(composition.compose([*OVERRIDES, *more])))


@dataclass(frozen=True)
class Fuse(AbstractTransform):
    """Ends the run at a version, as an interrupt does."""

    version: int = -1

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        if view.version == self.version:
            raise KeyboardInterrupt
        return delta


def test_the_server_says_what_it_does_before_it_starts_and_in_the_report(tmp_path: Path) -> None:
    told: list[str] = []
    result = runner.run(composition.compose([*OVERRIDES, "stop.versions=3"]), tmp_path / "run", tell=told.append)
    assert len(told) == 1 and "reconstructs" in told[0]
    assert result.row["notices"] == told
    assert told[0] in (tmp_path / "run" / "report.html").read_text()


def test_an_interrupted_run_goes_on_bit_for_bit_and_the_record_tells_what_was_inverted(tmp_path: Path) -> None:
    whole = experiment().run(tmp_path / "whole").row
    kinds = [row["kind"] for row in read_rows(tmp_path / "whole" / "events.jsonl") if row["event"] == "note"]
    assert {"inversion", "inversion judged"} <= set(kinds)
    broken = replace(experiment(), checkpoint_every=1e-9)
    with pytest.raises(KeyboardInterrupt):
        replace(broken, method=replace(broken.method, optimizer=(Fuse(6),))).run(tmp_path / "broken")
    resumed = replace(broken, method=replace(broken.method, optimizer=(Fuse(),))).run(tmp_path / "broken", resume=True)
    assert resumed.row["weights_sha256"] == whole["weights_sha256"]
    assert resumed.row["events_sha256"] == whole["events_sha256"]


def test_a_work_with_momentum_runs_with_a_discount_and_the_record_says_why(tmp_path: Path) -> None:
    experiment("work.momentum=0.5", "stop.versions=5").run(tmp_path / "run")
    notes = [row for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "note"]
    assert [row["kind"] for row in notes] == ["no inversion"] and "momentum" in notes[0]["why"]


BUSY = [
    "staleness.seconds_per_iteration=0.3",
    "schedule.broadcast=receipt",
    "schedule.window_seconds=0.6",
    "staleness.switch.checks=0",
]


def test_inversions_as_server_tasks_take_time_and_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    rows = {}
    for workers in (0, 1, 2):
        rows[workers] = experiment(*BUSY, f"workers={workers}").run(tmp_path / str(workers)).row
    for key in ("weights_sha256", "events_sha256", "virtual_seconds"):
        assert len({row[key] for row in rows.values()}) == 1
    events = read_rows(tmp_path / "0" / "events.jsonl")
    asked = [row for row in events if row["event"] == "prepared"]
    assert asked and all(row["until"] - row["t"] in (pytest.approx(1.2), pytest.approx(0.6)) for row in asked)
    combined = [row for row in events if row["event"] == "combined"]
    assert any(one["t"] < row["t"] < one["until"] for one in asked for row in combined)
    used = [(one, row) for one in asked for row in combined if one["job"] in row["jobs"]]
    assert used and all(row["t"] >= one["until"] for one, row in used)


def test_a_run_interrupted_while_the_server_ponders_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = experiment(*BUSY).run(tmp_path / "whole").row
    broken = replace(experiment(*BUSY), checkpoint_every=1e-9)
    for fuse, again in ((Fuse(2), False), (Fuse(3), True)):
        with pytest.raises(KeyboardInterrupt):
            replace(broken, method=replace(broken.method, optimizer=(fuse,))).run(tmp_path / "broken", resume=again)
    kept = json.loads((next((tmp_path / "broken" / "checkpoint").glob("*/run.json"))).read_text())
    resumed = replace(broken, workers=1, method=replace(broken.method, optimizer=(Fuse(),)))
    row = resumed.run(tmp_path / "broken", resume=True).row
    assert kept["server_tasks"]
    assert row["weights_sha256"] == whole["weights_sha256"] and row["events_sha256"] == whole["events_sha256"]
