"""Every schedule on the real server with random sequences of events: a stateful property test.

Clients answer well or badly, fail, leave, come back, are revoked and suspended; time stands still, reaches a timer or
goes past it; the server is saved and loaded, or killed and led back by its journal, and then both servers must do the
same. After every step each job has exactly one account, nothing is kept that nobody needs, and nobody gets work that
may not have it. At the end everybody is well again, and the run must go on by itself.

Schedules are found through their configuration files, their settings are drawn by type: a new one is tested as soon as
it has a file. `--hypothesis-profile=explore` tries new orders each time, longer ones.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from clients.work.sgd import Sgd
from fedhet.bases import AbstractTransform
from fedhet.engine.answer import Answer
from fedhet.engine.method import Method
from fedhet.engine.server import SAME_INSTANT_SECONDS, Send, Server
from fedhet.engine.stopping import Limits, TooManyFailures
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.numerics import plain_data, wire_format
from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.protocols import View
from fedhet.provenance import source_tree
from fedhet.runs import checkpoint
from fedhet.runs.journaled_server import Journaled, replay
from fedhet.runs.write_ahead_log import Journal
from fedhet.testing.quadratic import QuadraticWorld
from fedhet.types import Job, Memory, Tree, Update
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.rules.trimmed_mean import TrimmedMean
from strategies.spaces.full import Full

AXES = ("schedule",)
COUNT = 5
WORLD = QuadraticWorld([1.0, 0.5, 2.0, 1.5, 0.8], np.arange(2.0 * COUNT).reshape(COUNT, 2), [10, 20, 30, 5, 10])
AWAY: dict[str, Any] = {"availability": ((0.0, 4.0), (7.0, 20.0)), "availability_period_s": 20.0}
PROFILES = [Profile(sec_per_step=0.1 * (1 + i), **(AWAY if i == COUNT - 1 else {})) for i in range(COUNT)]
FLEET = Clients.from_profiles(PROFILES).with_examples(WORLD.examples())
"""Unequal clients, the slowest of which is not always online."""

MODEL = WORLD.model()
"""One model serves all clients, as on a worker."""

MEMORY_DISK = Path("/dev/shm")
"""Where syncing a file costs nothing, if this machine has it."""

WORDS = {"initial_mode": ["individual", "group"], "broadcast": ["aggregation", "receipt"]}
"""Fields of schedules that are words."""

LATER = st.sampled_from([0.0, 0.0, 0.0, 1e-10, 0.25, 1.0, 7.5])
"""Seconds between two events."""

REASONS = ("timeout", "dropout", "client error: disk 3 full", "client crashed: 9")
FAULTS = ("", "", "", "", "", "", "nan", "weight", "short", "version")


@dataclass(frozen=True)
class Deliberate(AbstractTransform):
    """Thinks for two seconds about what the first two clients send."""

    def prepare(self, update: Update, view: View, memory: Memory) -> tuple[Tree, float] | None:
        return ({"delta": update.delta["x"]}, 2.0) if update.job.client < 2 else None

    def run(self, task: Tree) -> Tree:
        return {"sum": task["delta"].sum()[None]}

    def complete(self, update: Update, result: Tree, memory: Memory) -> None:
        memory["sum"] = memory.get("sum", torch.zeros(1, dtype=torch.float64)) + result["sum"]

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        return update


def values(name: str, default: Any) -> st.SearchStrategy[Any]:
    """What a field of a schedule is tried with."""
    if name in WORDS:
        return st.sampled_from(WORDS[name])
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.sampled_from([default, 1, 2, 3])
    if isinstance(default, float):
        return st.sampled_from([default, 1.0, 2.5])
    return st.sampled_from([default, None, 1, 2])


@st.composite
def schedules(draw: st.DrawFn, default: Any) -> Callable[[], Any]:
    """How to build a schedule of this kind, with settings that it accepts."""
    kind = type(default)
    given = {f.name: draw(values(f.name, getattr(default, f.name))) for f in dataclasses.fields(kind) if f.init}
    try:
        kind(**given)
    except ValueError:  # settings that do not go together
        given = {f.name: getattr(default, f.name) for f in dataclasses.fields(kind) if f.init}
    return lambda: kind(**given)


@dataclass
class Life:
    """One server process: all it has in memory, and what it wrote."""

    server: Server
    gate: Gate
    rows: list[dict[str, Any]]
    tell: Any = None

    def state(self) -> dict[str, Any]:
        """Everything that decides what comes, as text and bytes."""
        server = self.server
        told = {name: getattr(server, name) for name in checkpoint.PLAIN_FIELDS}
        more = {"schedule": server.method.schedule, "inflight": server.inflight, "buffer": server.buffer}
        return {
            **{name: plain_data.dump(value) for name, value in {**told, **more}.items()},
            "timers": sorted(server.timers),
            "seen": {c: dataclasses.astuple(s) for c, s in server.seen.items()},
            "counts": {name: n for name, n in server.counts.items() if n},
            "sets": [
                sorted(server.excluded),
                sorted(server.revoked_jobs),
                sorted(server._busy),
                sorted(server._assigned),
            ],
            "bases": {version: bits(tree) for version, tree in server.bases.items()},
            "state": bits(server.state),
            "updates": {n: (bits(u.delta), u.weight, u.scale, dict(u.metrics)) for n, u in server.updates.items()},
            "server_tasks": {
                n: (bits(c.update.delta), bits(c.input), c.due) for n, c in server.server_tasks.open.items()
            },
            "memories": {name: bits(memory) for name, memory in server.memories.items() if memory},
            "rejections": {c: dict(n) for c, n in self.gate.rejections.items()},
            "suspended": dict(self.gate.suspended),
        }


def bits(tree: Tree) -> bytes:
    return bytes(wire_format.encode(tree))


@dataclass
class Ledger:
    """What became of each job, by what the server wrote and nothing else."""

    fate: dict[int, str] = field(default_factory=dict)
    client: dict[int, int] = field(default_factory=dict)

    def read(self, row: dict[str, Any]) -> None:
        match row["event"]:
            case "assign":
                assert row["job"] not in self.fate, "a number that was used before"
                self.client[row["job"]] = row["client"]
                self._move(row["job"], None, "in flight")
            case "arrived":
                self._move(row["job"], "in flight", "waiting")
            case "failed" | "rejected" as end:
                self._move(row["job"], "in flight", end)
            case "combined" | "dropped" as end:
                for job in row["jobs"]:
                    self._move(job, "waiting", end)

    def _move(self, job: int, before: str | None, after: str) -> None:
        assert self.fate.get(job) == before, f"job {job}: {self.fate.get(job)} became {after}"
        self.fate[job] = after


class Federation(RuleBasedStateMachine):
    """One schedule under everything that can happen; `default` is the schedule as its configuration file makes it."""

    default: Any

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None))
        self.lives: list[Life] = []
        self.done = self.sound = self.hopeless = False
        self.now, self.ledger, self.read, self.mark = 0.0, Ledger(), 0, 0
        self.here: set[int] = set()
        """Clients that are connected and not revoked."""
        self.incarnation = Counter[int]()
        self.asked: dict[int, int] = {}
        """Which incarnation of its client a job was sent to."""
        self.holds: dict[int, int] = {}
        """The version that a client's present device holds for sure."""
        self.payloads: dict[int, Tree] = {}

    # What happens

    @initialize(data=st.data(), absent=st.sets(st.integers(0, COUNT - 1), max_size=3), ponders=st.booleans(),
                versions=st.sampled_from([1000, 1000, 4]), seconds=st.sampled_from([None, None, 20.0]),
                tasks=st.sampled_from([None, None, 12]), suspension=st.sampled_from([None, 2.0]),
                demanding=st.booleans())  # fmt: skip
    def begin(
        self, data: st.DataObject, absent: set[int], ponders: bool, versions: int, seconds: float | None,
        tasks: int | None, suspension: float | None, demanding: bool,
    ) -> None:  # fmt: skip
        build = data.draw(schedules(self.default), label="schedule")
        limits = Limits(versions=versions, seconds=seconds, tasks=tasks)

        def life() -> Life:
            layers = (Deliberate(),) if ponders else ()
            rule = TrimmedMean(f=1) if demanding else Mean()  # three updates at least, or any number
            method = Method(build(), Full(), rule, Sgd(lr=0.05), Fixed(steps=2), staleness=layers)
            rows: list[dict[str, Any]] = []
            emit = lambda t, name, fields: rows.append({"t": t, "event": name, **fields})  # noqa: E731
            server = Server(method, method.space.begin(WORLD.model()), FLEET, limits, 0, emit)
            return Life(server, Gate(suspend_after=2, suspend_seconds=suspension), rows, server)

        self.life, self.journal = life, Journal(self.folder)
        self.lives = [life()]
        self._journaled()
        self.here = set(range(COUNT)) - absent
        self._tell("exclude", absent)
        self._tell("start")
        self.sound = True

    @precondition(lambda self: self._jobs())
    @rule(which=st.integers(0, COUNT - 1), fault=st.sampled_from(FAULTS), later=LATER)
    def answer(self, which: int, fault: str, later: float) -> None:
        self._pass(later)
        jobs = self._jobs()
        self._answer(jobs[which % len(jobs)], fault)

    @precondition(lambda self: self._jobs())
    @rule(later=LATER, backwards=st.booleans())
    def all_answer(self, later: float, backwards: bool) -> None:
        self._pass(later)
        for job in self._jobs()[:: -1 if backwards else 1]:
            if not self.server.over:
                self._answer(job)
        self.instant_ends(0.0)

    @precondition(lambda self: self._jobs())
    @rule(which=st.integers(0, COUNT - 1), reason=st.sampled_from(REASONS), later=LATER)
    def fail(self, which: int, reason: str, later: float) -> None:
        self._pass(later)
        jobs = self._jobs()
        job = jobs[which % len(jobs)]
        self.holds.pop(job.client, None)
        self._tell("failed", job.id, reason, self.now)

    @precondition(lambda self: not self._over())
    @rule(client=st.integers(0, COUNT - 1), later=LATER)
    def leave(self, client: int, later: float) -> None:
        self._pass(later)
        self.here.discard(client)
        if client not in self.server.excluded:
            self._tell("left", client, self.now)

    @precondition(lambda self: not self.done)
    @rule(client=st.integers(0, COUNT - 1), later=LATER)
    def join(self, client: int, later: float) -> None:
        self._pass(later)
        if client not in self.here:
            self.here.add(client)
            if client not in self.lives[0].gate.suspended:
                self._join(client)

    @precondition(lambda self: not self.done)
    @rule(client=st.integers(0, COUNT - 1), later=LATER)
    def revoke(self, client: int, later: float) -> None:
        self._pass(later)
        self.here.discard(client)
        self.holds.pop(client, None)
        self._tell("expel", client, "revoked", self.now)
        for life in self.lives:
            life.gate.clear_violations(client)

    @rule(later=LATER)
    def instant_ends(self, later: float) -> None:
        if self.done:
            return
        self._release()
        due = self.server.next_timer
        if due is not None and due <= self.now + SAME_INSTANT_SECONDS:
            self._tell("wake", self.now)
            due = self.server.next_timer
            assert self.server.over or due is None or due > self.now + SAME_INSTANT_SECONDS, "a timer in the past"
        assert not self.server.timers or self.server.over or min(self.server.timers) > self.now - SAME_INSTANT_SECONDS
        for send in self._tell("settle", self.now):
            self._sent(send)
        self.done = self._over()
        self.now += later

    @precondition(lambda self: not self._over())
    @rule(late=st.sampled_from([0.0, 0.0, 1e-7, 3.0]))
    def time_passes_until_a_timer(self, late: float) -> None:
        self.instant_ends(0.0)
        times = [t for t in (self.server.next_timer, self.lives[0].gate.next_release) if t is not None]
        if times and not self.done:
            self.now = max(self.now, min(times)) + late
            self.instant_ends(0.0)

    @precondition(lambda self: not self._over())
    @rule()
    def save_and_load(self) -> None:
        self.instant_ends(0.0)
        if self.done:
            return
        old = self.lives[-1]
        self.mark = self.journal.last
        checkpoint.save(self.folder, old.server, old.gate, checkpoint.Extras({"journal": self.mark}, {}))
        self.journal.forget(self.mark)
        kept = [path for path in (self.folder / "checkpoint").iterdir() if path.is_dir()]
        assert len(kept) == 1 and not list((self.folder / "payloads").iterdir()), "what the last one needed is gone"
        new = self.life()
        assert checkpoint.load(self.folder, new.server, new.gate).numbers == {"journal": self.mark}
        self._succeed(old, new)

    @precondition(lambda self: not self._over())
    @rule()
    def crash(self) -> None:
        """The last checkpoint, if there is one, and all that was written down after it."""
        old, new = self.lives[-1], self.life()
        if checkpoint.exists(self.folder):
            checkpoint.load(self.folder, new.server, new.gate)
        replay(self.journal, self.mark, new.server, new.gate, lambda row, sends: None)
        for life in (old, new):  # neither is written down by itself
            life.gate.release(self.now)
            life.server.now = self.now
        self._succeed(old, new)

    @precondition(lambda self: not self._over())
    @rule(really=st.sampled_from([False] * 5 + [True]))
    def stop(self, really: bool) -> None:
        if not really:
            return
        self._tell("stop", "told to", self.now)
        assert self.server.over

    # What must hold

    @invariant()
    def accounts_add_up(self) -> None:
        if not self.lives:
            return
        self.sound = False
        server, ledger = self.server, self.ledger
        self._read()
        jobs: dict[str, set[int]] = {}
        for job, fate in ledger.fate.items():
            jobs.setdefault(fate, set()).add(job)
        waiting = server.undecided
        assert set(server.inflight) == jobs.get("in flight", set())
        assert set(waiting) == jobs.get("waiting", set()) and not set(server.buffer) & set(server.server_tasks.open)
        row = server.row()
        ends = {
            "combined": row["accepted"],
            "dropped": row["late"],
            "failed": row["failed"],
            "rejected": row["rejected"],
        }
        for fate, counted in ends.items():
            number = counted if isinstance(counted, int) else sum(counted.values())
            assert number == len(jobs.get(fate, ())), fate
        assert row["dispatched"] == len(ledger.fate) == server.jobs
        # nothing is kept that nobody needs
        needed = Counter(job.version for job in [*server.inflight.values(), *waiting.values()])
        assert server._holders == needed and set(server.bases) == {server.version, *needed}
        assert set(server.updates) == set(server.buffer) and not server.revoked_jobs & set(waiting)
        assert server.bases[server.version] is server.state and server.sent_earlier <= set(server.inflight)
        # who has work, and who may have it
        busy = [job.client for job in server.inflight.values()]
        assert len(busy) == len(set(busy)) and not set(busy) & set(server._assigned)
        assert server._busy == {*busy, *server._assigned}
        assert server.excluded == set(range(COUNT)) - self.here | set(self.lives[0].gate.suspended)
        assert not server.excluded & set(server._assigned)
        self.sound = True

    @invariant()
    def both_servers_are_one(self) -> None:
        if len(self.lives) == 2:
            self.sound = False
            mine, theirs = (life.state() for life in self.lives)
            different = {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
            assert not different, different
            self.sound = True

    def teardown(self) -> None:
        try:
            if self.sound and not self.hopeless:
                self._everybody_is_well()
                self._end()
        finally:
            if self.lives:
                self.journal.close()
            shutil.rmtree(self.folder)

    def _everybody_is_well(self) -> None:
        """Whatever happened: if all are there and answer, every job ends and versions are made."""
        if self.done:
            return
        for client in range(COUNT):
            for life in self.lives:
                life.gate.clear_violations(client)
            if client in self.server.excluded:
                self.here.add(client)
                self._join(client)
        old, goal = (
            {n for n, fate in self.ledger.fate.items() if fate in ("in flight", "waiting")},
            self.server.version + 2,
        )
        for _ in range(400):
            if self.done or (self.server.version >= goal and not old & self._undecided()):
                return
            self.instant_ends(0.0)
            if self._jobs():
                self.now += 0.5
                for job in self._jobs():
                    if not self.server.over:
                        self._answer(job)
            elif not self.done:
                assert self.server.next_timer is not None, "nobody works, and nothing will wake the schedule"
                self.now = max(self.now, self.server.next_timer)
            self.accounts_add_up()
        raise AssertionError(
            f"400 instants, version {self.server.version}, undecided {sorted(old & self._undecided())}"
        )

    def _end(self) -> None:
        if not self.server.over:
            self._tell("stop", "the end", self.now)
        assert not self._tell("settle", self.now), "work after the end"
        self.accounts_add_up()
        self.both_servers_are_one()
        if getattr(self.server.method.schedule, "flush", False):
            assert set(self.server.buffer) <= set(self.server.carried), "a schedule that flushes leaves nothing behind"

    # Means

    @property
    def server(self) -> Server:
        return self.lives[0].server

    def _over(self) -> bool:
        return self.hopeless or bool(self.server.over)

    def _jobs(self) -> list[Job]:
        return [] if not self.lives or self._over() else list(self.server.inflight.values())

    def _undecided(self) -> set[int]:
        return {*self.server.undecided, *self.server.inflight}

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def _tell(self, word: str, *args: Any) -> Any:
        """Every living server hears the same, and must answer the same."""
        answers, before = [], self.server.version
        self.sound = False
        for life in self.lives:
            try:
                if word == "exclude" and life.tell is life.server:
                    life.server.excluded.update(*args)
                    continue
                answers.append(getattr(life.tell, word)(*args))
            except TooManyFailures as error:
                self.hopeless = self.done = True
                answers.append(str(error))
        if word == "settle":
            heard = [[(s.job, bits(s.payload), s.bytes_up) for s in sends] for sends in answers]
            assert heard[0] == heard[-1], "other jobs than the server that went on"
        else:
            assert answers[:1] == answers[-1:]
        assert self.server.version >= before, "a version that was taken back"
        assert word in ("exclude", "start") or self.server.now == self.now, "plug-ins see the time of what happens"
        self.sound = True
        return answers[0] if answers else None

    def _sent(self, send: Send) -> None:
        job = send.job
        assert job.client in self.here - set(self.lives[0].gate.suspended), "a job for a client that takes no part"
        assert job.held in (-1, self.holds.get(job.client, -1)), "a version that the client may not hold"
        assert job.version == self.server.version
        self.asked[job.id], self.payloads[job.id] = self.incarnation[job.client], send.payload

    def _join(self, client: int) -> None:
        self.incarnation[client] += 1
        self.holds.pop(client, None)
        self._tell("joined", client, self.now)

    def _release(self) -> None:
        free = [life.gate.release(self.now) for life in self.lives]
        assert free[0] == free[-1]
        for client in free[0]:
            if client in self.here:
                self._join(client)

    def _answer(self, job: Job, fault: str = "") -> None:
        """A client's answer, judged as a run judges it."""
        model, space, work = MODEL, self.server.space, self.server.method.work
        payload = self.payloads.pop(job.id)
        model.reset()
        model.extras.clear()
        space.install(model, payload, job)
        metrics = work.run(model, WORLD.shard(job.client, job.turn), job, {})
        data = bits(space.extract(model, payload))
        weight = float(self.server.roster.examples(job.client))
        if fault == "nan":
            data = data[:-8] + np.array([np.nan]).tobytes()
        said = Answer(
            job.id, job.client, job.version + (fault == "version"), weight + (fault == "weight"), metrics,
            data[: -1 if fault == "short" else None], wire_format.digest(data),
        "")  # fmt: skip
        verdicts = [
            life.gate.check(
                said, job.client, life.server.inflight, life.server.expects(job), FLEET, life.server.undecided
            )
            for life in self.lives
        ]
        first = verdicts[0]
        if isinstance(first, Update):
            if self.asked[job.id] == self.incarnation[job.client]:
                self.holds[job.client] = job.version
            self._tell("arrived", first, self.now)
            return
        assert isinstance(first, Rejected) and verdicts[-1] == first
        self.holds.pop(job.client, None)
        self._tell("reject", job, first.code, first.detail, self.now)
        if {life.gate.record_violation(job.client, first.code, self.now) for life in self.lives} == {True}:
            self._tell("left", job.client, self.now)

    def _read(self) -> None:
        """Keep the ledger by what was written since the last time."""
        for row in self.lives[0].rows[self.read :]:
            self.ledger.read(row)
        self.read = len(self.lives[0].rows)

    def _succeed(self, old: Life, new: Life) -> None:
        """The server that went on stays, as the measure of the one that begins."""
        self._read()
        old.tell, self.lives, self.read = old.server, [old, new], len(old.rows)
        self._journaled()

    def _journaled(self) -> None:
        """The last of the living servers writes the journal."""
        life = self.lives[-1]
        life.tell = Journaled(life.server, self.journal)


def explore(default: Any) -> None:
    """Try a schedule: a few seconds as a test, longer orders and as many as asked for with `explore`."""
    machine = type("Machine", (Federation,), {"default": default})
    quick = settings.default is None or settings.default.derandomize
    size = {"max_examples": 20, "stateful_step_count": 25} if quick else {"stateful_step_count": 60}
    run_state_machine_as_test(machine, settings=settings(settings.default, **size))


def test_any_order_of_events(option: str, build: Callable[[str], Any]) -> None:
    explore(build(option))


def test_the_example_of_the_documentation_does_all_of_it_right(tmp_path: Path) -> None:
    text = (source_tree.conf().parent / "strategies" / "schedules" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "documented_schedule.py").write_text(code)
    found = importlib.util.spec_from_file_location("documented_schedule", tmp_path / "documented_schedule.py")
    assert found is not None and found.loader is not None
    sys.modules[found.name] = module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        explore(module.Rounds())
    finally:
        del sys.modules[found.name]
