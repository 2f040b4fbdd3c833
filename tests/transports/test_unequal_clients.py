"""FedCompass on a real clock: clients of unequal speed return in groups."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from fedhet.config import composition
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment

SECONDS = (0.2, 0.1, 0.4, 0.3)
"""Of one step, by client."""

SLEEPER = '''
"""Local training that takes its time: every step sleeps as long as its client is slow."""
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Sleeper:
    seconds: tuple = ()
    batch: int = 32
    needs = frozenset()

    def run(self, model, data, job, memory):
        for _ in range(job.budget.steps):
            time.sleep(self.seconds[job.client])
            model.params.mul_(0.999)
        return {"loss": 1.0}
'''


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configuration groups with work=sleeper, whose class every process of the run can import."""
    code, conf = tmp_path / "code", tmp_path / "conf"
    code.mkdir()
    (conf / "work").mkdir(parents=True)
    (code / "sleeper_for_a_test.py").write_text(textwrap.dedent(SLEEPER))
    (conf / "work" / "sleeper.yaml").write_text(
        f"_target_: sleeper_for_a_test.Sleeper\nseconds: {list(SECONDS)}\nbatch: 32\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(code))
    monkeypatch.syspath_prepend(str(code))
    return conf


@pytest.mark.transport
def test_members_of_a_group_arrive_within_a_step_of_each_other(tmp_path: Path, options: Path) -> None:
    given = [
        "strategy=fedcompass", "schedule.q_min=2", "schedule.q_max=8", "work=sleeper", "fleet=homogeneous",
        f"fleet.clients={len(SECONDS)}", "partition=iid", "transport=ray", f"workers={len(SECONDS)}",
        "stop.versions=20", "stop.seconds=120", "target=1.0",
    ]  # fmt: skip
    folder = tmp_path / "run"
    Experiment.of(composition.resolved(composition.compose(given, options))).run(folder)
    groups, due = arrivals(list(read_rows(folder / "events.jsonl")))
    # The first task starts a process on its client, so the speed it shows is not the client's: the third task is the
    # first whose steps follow from a speed that is.
    settled = [g for g in groups if len(g) > 1 and all(turn >= 2 for _, turn, _ in g)]
    assert len(settled) >= 2 and max(map(len, settled)) >= 3, f"clients of such speeds meet in groups: {groups}"
    # A client is early by less than a step of its own, as steps are whole; a busy machine makes it late now and then.
    spread = median(max(t for _, _, t in g) - min(t for _, _, t in g) for g in settled)
    assert spread <= max(SECONDS), f"members arrive {spread:.2f} s apart, a step of the slowest takes {max(SECONDS)} s"
    off = median(abs(due[job] - t) for g in settled for job, _, t in g)
    assert off <= max(SECONDS), f"members arrive {off:.2f} s from when they are due"


def arrivals(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[tuple[int, int, float]]], dict[int, float]]:
    """Of every combination its jobs that came in time for their group, (job, turn, second); and when each was due."""
    noted: dict[int, Mapping[str, Any]] = {}
    jobs: dict[int, tuple[Mapping[str, Any], int]] = {}
    back: dict[int, float] = {}
    groups = []
    for row in rows:
        match row["event"]:
            case "note" if row["kind"] == "group":
                noted[row["client"]] = row
            case "assign" if row["client"] in noted:
                jobs[row["job"]] = noted.pop(row["client"]), row["turn"]
            case "arrived":
                back[row["job"]] = row["t"]
            case "combined":
                members = [j for j in row["jobs"] if j in jobs and back[j] <= jobs[j][0]["latest"] + 1e-9]
                groups.append([(j, jobs[j][1], back[j]) for j in members])
    return groups, {job: note["due"] for job, (note, _) in jobs.items()}
