"""What every schedule owes the engine, on a fleet that is unequal, loses jobs and goes offline."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.work.sgd import Sgd
from fedhet import types
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.model.flat_model import Model
from fedhet.numerics import plain_data
from fedhet.population.profile import Jitter, Profile
from fedhet.population.roster import Clients
from fedhet.protocols import Schedule, Shard, View
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.runs.result import Result
from fedhet.testing.quadratic import QuadraticWorld
from fedhet.types import Command, Event, Job, Memory
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.spaces.full import Full

AXES = ("schedule",)
COUNT = 8


@dataclass(frozen=True)
class Shaky(Sgd):
    """Training that raises now and then."""

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        if (job.client + 2 * job.turn) % 7 == 3:
            raise RuntimeError("disk full")
        return super().run(model, data, job, memory)


@dataclass
class Reborn:
    """A schedule that is written out as text and read into a new one after every event."""

    inner: Any
    fresh: Callable[[], Any]

    def react(self, event: Event, view: View) -> Iterable[Command]:
        yield from self.inner.react(event, view)
        text = json.dumps(plain_data.dump(self.inner))
        self.inner = self.fresh()
        plain_data.fill(self.inner, json.loads(text), [sys.modules[type(self.inner).__module__], types])


@dataclass
class Gatekeeper:
    """Expels now and then a client with an undecided update, or one with a job, and lets it back in later."""

    inner: Any
    events: int = 0
    out: list[int] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)

    def react(self, event: Event, view: Any) -> Iterable[Command]:
        yield from self.inner.react(event, view)
        self.events += 1
        if isinstance(event, types.Ending) or view.closing:
            return
        if self.events % 9 == 4 and not self.out:
            undecided, busy = list(view.buffer.values()), list(view.inflight.values())
            jobs = undecided if self.events % 2 else busy
            if jobs:
                self.out.append(jobs[0].client)
                self.revoked_jobs += [job.id for job in undecided if job.client == jobs[0].client]
                view.expel(jobs[0].client, "revoked", view.now)
        elif self.events % 9 == 0 and self.out:
            view.joined(self.out.pop(), view.now)


def lossy_fleet(world: QuadraticWorld) -> Clients:
    profiles = [
        Profile(
            sec_per_step=0.02 * (1 + i) ** 1.5,
            compute_jitter=Jitter("lognormal", 0.2),
            uplink_bytes_per_s=2e3 * (1 + i),
            latency_s=0.01 * i,
            dropout_prob=0.25 if i % 3 == 1 else 0.0,
            availability=((0, 4), (7, 20)) if i % 4 == 2 else (),
            availability_period_s=20.0 if i % 4 == 2 else None,
        )
        for i in range(world.clients)
    ]
    return Clients.from_profiles(profiles).with_examples(world.examples())


def run(schedule: Schedule, limits: Limits, folder: Path, workers: int = 0) -> Result:
    rng = np.random.default_rng(0)
    world = QuadraticWorld(rng.uniform(0.5, 2, COUNT), rng.normal(size=(COUNT, 5)), rng.integers(5, 30, COUNT).tolist())
    method = Method(schedule, Full(), Mean(), Shaky(lr=0.05), Fixed(steps=5), name="conformance")
    return Experiment(
        method, lossy_fleet(world), world, limits, workers=workers, timeout=60.0, checkpoint_every=1e9
    ).run(folder)


@pytest.mark.parametrize("limits", [Limits(versions=12), Limits(seconds=30.0), Limits(tasks=90)], ids=str)
def test_a_run_reaches_its_limit_and_no_other(
    option: str, build: Callable[[str], Any], limits: Limits, tmp_path: Path
) -> None:
    row = run(build(option), limits, tmp_path / "run").row
    if limits.versions:
        assert row["versions"] == limits.versions
    if limits.seconds:
        assert row["virtual_seconds"] == limits.seconds
    if limits.tasks:
        assert row["client_tasks"] == limits.tasks
    assert row["stopped"].split()[1] in ("versions", "seconds", "client")
    assert row["versions"] > 0


def test_every_job_is_in_one_place_and_every_update_is_combined_at_most_once(
    option: str, build: Callable[[str], Any], tmp_path: Path
) -> None:
    result = run(build(option), Limits(tasks=150), tmp_path / "run")
    u, rows = result.row["updates"], read_rows(tmp_path / "run" / "events.jsonl")
    assert u["failed"]["client error"] and sum(u["failed"].values()) > u["failed"]["client error"], "a lossy fleet"
    gone = sum(sum(u[kind].values()) for kind in ("late", "rejected", "failed"))
    assert u["dispatched"] == u["accepted"] + gone + u["buffered"] + u["unfinished"]
    combined = [job for row in rows if row["event"] == "combined" for job in row["jobs"]]
    dropped = [job for row in rows if row["event"] == "dropped" for job in row["jobs"]]
    arrived = {row["job"] for row in rows if row["event"] == "arrived"}
    assert len(combined) == len(set(combined)) == u["accepted"]
    assert len(combined) + len(dropped) + u["buffered"] == len(arrived)
    assert set(combined) | set(dropped) <= arrived and not set(combined) & set(dropped)


def test_nobody_has_two_jobs_and_failures_do_not_end_a_clients_part(
    option: str, build: Callable[[str], Any], tmp_path: Path
) -> None:
    run(build(option), Limits(tasks=150), tmp_path / "run")
    busy: dict[int, int] = {}
    failed: set[int] = set()
    back: set[int] = set()
    for row in read_rows(tmp_path / "run" / "events.jsonl"):
        if row["event"] == "assign":
            assert row["client"] not in busy, "a client with a job already"
            busy[row["client"]] = row["job"]
            back |= failed & {row["client"]}
        elif row["event"] in ("arrived", "failed"):
            assert busy.pop(row["client"]) == row["job"]
            failed |= {row["client"]} if row["event"] == "failed" else set()
    assert failed and back == failed, "everybody who failed is asked again"


def test_workers_do_not_change_the_run(option: str, build: Callable[[str], Any], tmp_path: Path) -> None:
    rows = [run(build(option), Limits(tasks=60), tmp_path / str(n), n).row for n in (0, 2)]
    for key in ("weights_sha256", "events_sha256", "virtual_seconds", "updates"):
        assert rows[0][key] == rows[1][key], key


def test_a_schedule_that_is_saved_and_loaded_after_every_event_does_the_same(
    option: str, build: Callable[[str], Any], tmp_path: Path
) -> None:
    whole = run(build(option), Limits(tasks=120), tmp_path / "whole").row
    reborn = run(Reborn(build(option), lambda: build(option)), Limits(tasks=120), tmp_path / "reborn").row
    assert reborn["events_sha256"] == whole["events_sha256"]
    assert reborn["weights_sha256"] == whole["weights_sha256"]


def test_undecided_updates_of_an_expelled_client_are_left_out_and_the_run_goes_on(
    option: str, build: Callable[[str], Any], tmp_path: Path
) -> None:
    keeper = Gatekeeper(build(option))
    result = run(keeper, Limits(tasks=150), tmp_path / "run")
    u, rows = result.row["updates"], read_rows(tmp_path / "run" / "events.jsonl")
    assert u["failed"]["revoked"], "clients at work are expelled as well"
    assert u["late"].get("revoked", 0) == len(keeper.revoked_jobs)
    combined = [job for row in rows if row["event"] == "combined" for job in row["jobs"]]
    assert not set(combined) & set(keeper.revoked_jobs) and len(combined) == u["accepted"] > 20
    gone = sum(sum(u[kind].values()) for kind in ("late", "rejected", "failed"))
    assert u["dispatched"] == u["accepted"] + gone + u["buffered"] + u["unfinished"]
    out: set[int] = set()
    for row in rows:
        if row["event"] in ("left", "joined"):
            out ^= {row["client"]}
        assert not (row["event"] == "assign" and row["client"] in out), "no work for who is out"
