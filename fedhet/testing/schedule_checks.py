"""The checks of a schedule, on a heterogeneous fleet with lost jobs and offline times.

Each check runs a small federation in virtual time: eight quadratic clients, no data set.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedhet import types
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.model.flat_model import Model
from fedhet.numerics import plain_data
from fedhet.population.profile import Jitter, Profile
from fedhet.population.roster import Clients
from fedhet.protocols import Schedule, Shard, View, Work
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.testing.checking import Check, ensure, option
from fedhet.testing.quadratic import QuadraticWorld
from fedhet.types import Command, Event, Job, Memory

COUNT = 8
LIMITS = (Limits(versions=12), Limits(seconds=30.0), Limits(tasks=90))
TASKS = Limits(tasks=150)


@dataclass(frozen=True)
class Shaky:
    """Local training that raises an exception at times."""

    inner: Work
    needs: frozenset[str] = frozenset()
    batch: int = 1

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]:
        if (job.client + 2 * job.turn) % 7 == 3:
            raise RuntimeError("disk full")
        return self.inner.run(model, data, job, memory)


@dataclass
class Reborn:
    """A schedule that is saved as text and loaded into a new object after every event."""

    inner: Any
    fresh: Callable[[], Any]

    def react(self, event: Event, view: View) -> Iterable[Command]:
        yield from self.inner.react(event, view)
        text = json.dumps(plain_data.dump(self.inner))
        self.inner = self.fresh()
        plain_data.fill(self.inner, json.loads(text), [sys.modules[type(self.inner).__module__], types])


@dataclass
class Gatekeeper:
    """Revokes at times a client with an undecided update or with a job, and admits it again later."""

    inner: Any
    events: int = 0
    out: list[int] = field(default_factory=list)
    revoked_jobs: list[int] = field(default_factory=list)

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
    """Clients of unequal speed; every third loses a quarter of its jobs, every fourth is offline at times."""
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


@dataclass(frozen=True)
class Played:
    """A run's result.json and the rows of its events.jsonl."""

    row: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    def jobs(self, event: str) -> list[int]:
        """All jobs that events of this kind name, in order."""
        return [job for row in self.rows if row["event"] == event for job in row["jobs"]]


def run(schedule: Schedule, limits: Limits, workers: int = 0) -> Played:
    """Run a federation with this schedule, which must be in its initial state, to these limits."""
    rng = np.random.default_rng(0)
    world = QuadraticWorld(
        rng.uniform(0.5, 2, COUNT).tolist(), rng.normal(size=(COUNT, 5)), rng.integers(5, 30, COUNT).tolist()
    )
    work = Shaky(dataclasses.replace(option("work", "sgd"), lr=0.05))
    parts = option("space", "full"), option("rule", "mean")
    budget = dataclasses.replace(option("budget", "fixed"), steps=5)
    method = Method(schedule, *parts, work, budget, name="conformance")
    with tempfile.TemporaryDirectory(prefix="fedhet-check-") as folder:
        result = Experiment(
            method, lossy_fleet(world), world, limits, workers=workers, timeout=60.0, checkpoint_every=1e9
        ).run(Path(folder) / "run")
        return Played(result.row, read_rows(Path(folder) / "run" / "events.jsonl"))


def limits(schedule: Schedule) -> None:
    """A run ends at its limit, and at no other."""
    for limit in LIMITS:
        row = run(copy.deepcopy(schedule), limit).row
        for name, key in (("versions", "versions"), ("seconds", "virtual_seconds"), ("tasks", "client_tasks")):
            wanted = getattr(limit, name)
            ensure(not wanted or row[key] == wanted, f"stop.{name}={wanted}: the run ended with {key}={row[key]}")
        ensure(row["stopped"].split()[1] in ("versions", "seconds", "client"), f"{limit}: it ended by {row['stopped']}")
        ensure(row["versions"] > 0, f"{limit}: nothing was combined")


def accounts(schedule: Schedule) -> None:
    """Every job has one outcome, every update is combined at most once, and none waits for ever."""
    played = run(copy.deepcopy(schedule), TASKS)
    u, versions = played.row["updates"], played.row["versions"]
    ensure(u["failed"].get("client error", 0) > 0, f"on a fleet that loses jobs none failed: {u['failed']}")
    _balanced(u)
    combined, dropped = played.jobs("combined"), played.jobs("dropped")
    arrived = {row["job"] for row in played.rows if row["event"] == "arrived"}
    ensure(len(combined) == len(set(combined)) == u["accepted"], f"{len(combined)} combined, {u['accepted']} accepted")
    ensure(len(combined) + len(dropped) + u["buffered"] == len(arrived), f"of {len(arrived)} that arrived: {u}")
    ensure(set(combined) | set(dropped) <= arrived, "a job is combined or dropped that never arrived")
    ensure(not set(combined) & set(dropped), f"combined and dropped: {sorted(set(combined) & set(dropped))}")
    made = 0
    for row in played.rows:
        made += row["event"] == "combined"
        if row["event"] == "arrived" and row["job"] not in {*combined, *dropped}:
            told = f"job {row['job']} arrived at version {made} of {versions} and was neither combined nor dropped"
            ensure(made >= versions // 2, told)


def _balanced(u: Mapping[str, Any]) -> None:
    gone = sum(sum(u[kind].values()) for kind in ("late", "rejected", "failed"))
    ensure(u["dispatched"] == u["accepted"] + gone + u["buffered"] + u["unfinished"], f"jobs have no account: {u}")


def failures(schedule: Schedule) -> None:
    """No client has two jobs, and a client gets jobs again after failures."""
    busy: dict[int, int] = {}
    failed: set[int] = set()
    back: set[int] = set()
    for row in run(copy.deepcopy(schedule), TASKS).rows:
        if row["event"] == "assign":
            ensure(row["client"] not in busy, f"client {row['client']} gets job {row['job']} and has one already")
            busy[row["client"]] = row["job"]
            back |= failed & {row["client"]}
        elif row["event"] in ("arrived", "failed"):
            ensure(busy.pop(row["client"]) == row["job"], f"job {row['job']} ends that was not given out")
            failed |= {row["client"]} if row["event"] == "failed" else set()
    ensure(bool(failed), "on a fleet that loses jobs none failed")
    ensure(back == failed, f"clients {sorted(failed - back)} failed once and are not asked again")


def workers(schedule: Schedule) -> None:
    """The number of worker processes does not change the run."""
    rows = [run(copy.deepcopy(schedule), Limits(tasks=60), n).row for n in (0, 2)]
    for key in ("weights_sha256", "events_sha256", "virtual_seconds", "updates"):
        ensure(rows[0][key] == rows[1][key], f"{key} is {rows[0][key]}, with two worker processes {rows[1][key]}")


def saved(schedule: Schedule) -> None:
    """A schedule that is saved and loaded after every event gives the same run: its fields are its full state."""
    straight = run(copy.deepcopy(schedule), Limits(tasks=120)).row
    reborn = Reborn(copy.deepcopy(schedule), lambda: copy.deepcopy(schedule))
    other = run(reborn, Limits(tasks=120)).row
    for key in ("events_sha256", "weights_sha256"):
        told = f"{key} is {straight[key]}, and {other[key]} if it is saved and loaded after every event"
        ensure(straight[key] == other[key], told)


def expelled(schedule: Schedule) -> None:
    """Undecided updates of a revoked client are left out, and the run continues."""
    keeper = Gatekeeper(copy.deepcopy(schedule))
    played = run(keeper, TASKS)
    u, combined = played.row["updates"], played.jobs("combined")
    ensure(u["failed"].get("revoked", 0) > 0, f"clients at work are expelled as well: {u['failed']}")
    late = u["late"].get("revoked", 0)
    ensure(late == len(keeper.revoked_jobs), f"{len(keeper.revoked_jobs)} updates were withdrawn, {late} accounted for")
    ensure(not set(combined) & set(keeper.revoked_jobs), "an update of an expelled client is combined")
    ensure(
        len(combined) == u["accepted"] > 20,
        f"{u['accepted']} updates of 150 tasks are accepted: the run does not go on",
    )
    _balanced(u)
    out: set[int] = set()
    for row in played.rows:
        if row["event"] in ("left", "joined"):
            out ^= {row["client"]}
        if row["event"] == "assign":
            ensure(row["client"] not in out, f"client {row['client']} is out and gets work")


CHECKS: dict[str, Check] = {
    "limits": limits,
    "accounts": accounts,
    "failures": failures,
    "workers": workers,
    "saved": saved,
    "expelled": expelled,
}
