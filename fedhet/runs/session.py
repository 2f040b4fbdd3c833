"""A run in progress on any transport: it connects server, gate, event loop, evaluation, event log and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedhet.engine.server import Send, Server
from fedhet.engine.update_validation import Gate
from fedhet.flower.event_loop import EventLoop
from fedhet.numerics import wire_format
from fedhet.numerics.tree import Schema
from fedhet.protocols import Clock
from fedhet.runs import checkpoint
from fedhet.runs.checkpoint import Extras
from fedhet.runs.evaluator import Best, Evaluator
from fedhet.runs.event_log import Record, complete_bytes
from fedhet.runs.experiment import Experiment, Progress
from fedhet.runs.finishing import BEST, finish, forget_best, save_tensors
from fedhet.runs.journaled_server import Journaled
from fedhet.runs.journaled_server import replay as journal_replay
from fedhet.runs.result import Result
from fedhet.runs.write_ahead_log import Journal, JournalError, Row
from fedhet.system import atomic_file
from fedhet.types import ClientId


class Session:
    """One process of a run: construct, `join`, `go`; the folder then has a finished run.

    `numbers` and `states` are what the transport adds to a checkpoint: its clock, and the contexts of its clients. In
    real time training cannot be repeated, so the server's inputs are `journaled`. `started` says whether the run began
    in an earlier process. `tally` gives additional entries of the result.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None, code: str, sealed: bool,
        journaled: bool = False,
    ) -> None:  # fmt: skip
        self.experiment, self.folder, self.progress = experiment, folder, progress
        folder.mkdir(parents=True, exist_ok=True)
        began = (folder / "events.jsonl").is_file() or checkpoint.exists(folder)
        self.journal = Journal(folder, began=resume and began) if journaled else None
        self._logged_bytes = complete_bytes(folder / "events.jsonl") if resume else 0
        resume = resume and checkpoint.exists(folder)
        stored = checkpoint.peek(folder) if resume else {}
        if self.journal is not None and resume:
            self.journal.check_reaches(stored["journal"], stored["run"])
        self.record = Record(folder, stored.get("record"))
        model = experiment.world.model()
        self.server = Server(
            experiment.method,
            experiment.method.space.begin(model),
            experiment.clients,
            experiment.limits,
            experiment.seed,
            self.record.emit,
            experiment.aggregation.begin(experiment.method, len(experiment.clients)),
        )
        self.gate = Gate(max_weight=experiment.max_weight, code=code, sealed=sealed, **experiment.gate)
        self.evaluator = Evaluator(
            experiment.world,
            model,
            self.record,
            experiment.target,
            experiment.every_versions,
            experiment.every_seconds,
            experiment.keep_best,
        )
        self.resumed: Extras | None = checkpoint.load(folder, self.server, self.gate) if resume else None
        self.started = self.resumed is not None
        self.tally: Callable[[], Mapping[str, Any]] = dict
        self._wall = time.monotonic() - float(stored.get("wall_seconds", 0.0))
        self._saved = self._shown = time.monotonic()
        self._best = ""
        """The hash of the best version's file in the run folder."""

    def join(
        self, grid: Grid, clock: Clock, nodes: Callable[[ClientId], int], *, seal: bool = False, world: str = ""
    ) -> EventLoop:
        """Connect the server to a grid and a clock, restore the loop's numbers, and replay the journal."""
        self.loop = EventLoop(
            self.server, grid, clock, self.gate, nodes, seal, world, self.experiment.timeout, self._after_instant
        )
        if self.resumed:
            numbers = self.resumed.numbers
            self.loop.bytes_up, self.loop.bytes_down = numbers["bytes_up"], numbers["bytes_down"]
            self.evaluator.version, self.evaluator.due = numbers["evaluated"], numbers["due"]
            self.evaluator.time_to_target = numbers["time_to_target"]
            if numbers.get("best") is not None:
                accuracy, at, self._best = numbers["best"]
                self.evaluator.best = Best(accuracy, at, None)
                atomic_file.check(self.folder / BEST.format(at), self._best)
        if self.journal is not None:
            self._replay(self.journal, int(self.resumed.numbers["journal"]) if self.resumed else 0)
            self.loop.run_id = self.journal.run
            self.loop.tell = self.inputs = Journaled(self.server, self.journal)
        return self.loop

    def _replay(self, journal: Journal, after: int) -> None:
        """Replay the journal's rows after the last checkpoint. Raises JournalError if its end is lost."""
        loop, server = self.loop, self.server

        def seen(row: Row, sends: list[Send]) -> None:
            if row.kind == "start":
                self.evaluator.evaluate_if_due(loop, force=True)
            loop.bytes_up += len(row.payload or b"")
            loop.bytes_down += sum(wire_format.size(Schema.of(send.payload)) for send in sends)
            if row.kind not in ("exclude", "profile_update"):  # these happen before the evaluation of their instant
                self.evaluator.evaluate_if_due(loop)

        self.started = journal_replay(journal, after, server, self.gate, seen) or self.started
        if self.record.events.size < self._logged_bytes:  # an input is journaled before its events are logged
            raise JournalError(
                f"{self.folder / 'journal.db'} ends before events.jsonl does, so its end is lost: "
                f"{atomic_file.OR_ANEW}; to go on from what is left, delete events.jsonl"
            )

    def go(self, numbers: Callable[[], dict[str, Any]], states: Callable[[], dict[int, Any]]) -> Result:
        """Run to the end and write the result. The event log is synced in any case."""
        self._numbers, self._states = numbers, states
        self._show()
        self.record.tick = self._tick  # an instant with many clients takes long
        try:
            if not self.started:
                self.evaluator.evaluate_if_due(self.loop, force=True)
            self.loop.run(start=not self.started)
            self._show()  # all tasks are done; the last evaluation may take long
            self.evaluator.evaluate_if_due(self.loop, force=True)
            self._show(last=True)
        finally:
            self.record.close()
            self.server.aggregator.close()
            if self.journal is not None:
                self.journal.close()
        return self._finish()

    def save(self) -> None:
        """Write a checkpoint; only between instants."""
        self.record.sync()
        best = self.evaluator.best
        if best is not None and best.tensors:
            self._best = save_tensors(self.folder / BEST.format(best.version), best.tensors)
        extras = {
            **self._numbers(),
            "config": dict(self.experiment.config),
            "record": self.record.mark(),
            "journal": 0 if self.journal is None else self.journal.last,
            "run": "" if self.journal is None else self.journal.run,
            "bytes_up": self.loop.bytes_up,
            "bytes_down": self.loop.bytes_down,
            "evaluated": self.evaluator.version,
            "due": self.evaluator.due,
            "time_to_target": self.evaluator.time_to_target,
            "best": None if best is None or not self._best else [best.accuracy, best.version, self._best],
            "wall_seconds": time.monotonic() - self._wall,
        }
        checkpoint.save(self.folder, self.server, self.gate, Extras(extras, self._states()))
        if self.journal is not None:
            self.journal.forget(self.journal.last)
        forget_best(self.folder, except_version=-1 if best is None else best.version)
        self._saved = time.monotonic()

    def _after_instant(self) -> None:
        self.evaluator.evaluate_if_due(self.loop)
        target = self.experiment.limits.target
        if target is not None and not self.server.over and self.evaluator.reached(self.server, target):
            self.loop.tell.stop(f"target {target:g}", self.loop.clock.now())
        now = time.monotonic()
        complete = self.journal is not None or self.loop.settled
        if now - self._saved >= self.experiment.checkpoint_every and complete and not self.server.over:
            self.save()
        self._tick()

    def _tick(self) -> None:
        if time.monotonic() - self._shown >= 0.1:
            self._show()

    def _show(self, last: bool = False) -> None:
        self._shown = time.monotonic()
        if self.progress is None:
            return
        server, limits = self.server, self.experiment.limits
        shares = [
            done / limit
            for done, limit in (
                (server.version, limits.versions),
                (server.now, limits.seconds),
                (server.landed, limits.tasks),
            )
            if limit
        ]
        scores = self.evaluator.scores
        self.progress(
            {
                "t": server.now,
                "version": server.version,
                "tasks": server.landed,
                "given": server.jobs,
                "accuracy": scores.accuracy if scores else None,
                "share": 1.0 if last else min(1.0, max(shares)),
                "wall_seconds": time.monotonic() - self._wall,
            }
        )

    def _finish(self) -> Result:
        wall = time.monotonic() - self._wall
        return finish(self.experiment, self.folder, self.loop, self.evaluator, self.tally(), wall)
