"""A run in progress on any transport: server, gate, loop, evaluation, record and checkpoints joined; and its end."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from flwr.serverapp import Grid
from safetensors import SafetensorError
from torch import Tensor

from fedhet import native
from fedhet.engine.server import Send, Server
from fedhet.engine.update_validation import Gate
from fedhet.flower.event_loop import EventLoop
from fedhet.flower.node_directory import absence_notices
from fedhet.numerics import wire_format
from fedhet.numerics.tree import Schema
from fedhet.protocols import Clock
from fedhet.runs import checkpoint
from fedhet.runs.checkpoint import Extras
from fedhet.runs.evaluator import Best, Evaluator
from fedhet.runs.event_log import Record, whole_bytes, write_atomic
from fedhet.runs.experiment import Experiment, Progress
from fedhet.runs.result import SCHEMA, Result, row_digest
from fedhet.runs.write_ahead_log import Journal, Journaled, JournalError, Row
from fedhet.runs.write_ahead_log import replay as journal_replay
from fedhet.system import atomic_file
from fedhet.types import ClientId

PACKAGES = ("flwr", "torch", "numpy", "peft", "hydra-core", "safetensors", "scikit-learn")


BEST = "best-{}.safetensors"
"""The best version's weights beside a checkpoint; the finished run has best.safetensors if the last is not the best."""


class Session:
    """Build, `join`, `go`, and the folder holds a finished run.

    `numbers` and `states` are what the transport adds to a checkpoint: its clock, and its clients' contexts. In real
    time nothing can be repeated, so there everything the server hears is `journaled`; `started` says whether the run
    had begun in an earlier life.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None, code: str, sealed: bool,
        journaled: bool = False,
    ) -> None:  # fmt: skip
        self.experiment, self.folder, self.progress = experiment, folder, progress
        folder.mkdir(parents=True, exist_ok=True)
        began = (folder / "events.jsonl").is_file() or checkpoint.exists(folder)
        self.journal = Journal(folder, began=resume and began) if journaled else None
        self._told = whole_bytes(folder / "events.jsonl") if resume else 0
        resume = resume and checkpoint.exists(folder)
        kept = checkpoint.peek(folder) if resume else {}
        if self.journal is not None and resume:
            self.journal.reaches(kept["journal"], kept["run"])
        self.record = Record(folder, kept.get("record"))
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
        self._wall = time.monotonic() - float(kept.get("wall_seconds", 0.0))
        self._saved = self._shown = time.monotonic()
        self._best = ""
        """The hash of the best version's file beside the checkpoint."""

    def join(
        self, grid: Grid, clock: Clock, nodes: Callable[[ClientId], int], *, seal: bool = False, world: str = ""
    ) -> EventLoop:
        """Put the server on a grid and a clock."""
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
        """Go on from the last checkpoint to the last word that was written down."""
        loop, server = self.loop, self.server

        def seen(row: Row, sends: list[Send]) -> None:
            if row.kind == "start":
                self.evaluator.look(loop, force=True)
            loop.bytes_up += len(row.payload or b"")
            loop.bytes_down += sum(wire_format.size(Schema.of(send.payload)) for send in sends)
            if row.kind not in ("exclude", "profile_update"):
                self.evaluator.look(loop)

        self.started = journal_replay(journal, after, server, self.gate, seen) or self.started
        if self.record.events.size < self._told:  # a word is in the journal before anything follows from it
            raise JournalError(
                f"{self.folder / 'journal.db'} ends before events.jsonl does, so its end is lost: "
                f"{atomic_file.OR_ANEW}; to go on from what is left, delete events.jsonl"
            )

    def go(self, numbers: Callable[[], dict[str, Any]], states: Callable[[], dict[int, Any]]) -> Result:
        """Run to the end and write the result. The record is synced whatever happens."""
        self._numbers, self._states = numbers, states
        self._show()
        self.record.tick = self._tick  # an instant of many clients takes long
        try:
            if not self.started:
                self.evaluator.look(self.loop, force=True)
            self.loop.run(start=not self.started)
            self._show()  # all tasks are done; the last evaluation may take a while
            self.evaluator.look(self.loop, force=True)
            self._show(last=True)
        finally:
            self.record.close()
            self.server.aggregator.close()
            if self.journal is not None:
                self.journal.close()
        return self._finish()

    def save(self) -> None:
        """Checkpoint now; only between instants."""
        self.record.sync()
        best = self.evaluator.best
        if best is not None and best.tensors:
            self._best = _save_tensors(self.folder / BEST.format(best.version), best.tensors)
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
        self._forget_best(except_version=-1 if best is None else best.version)
        self._saved = time.monotonic()

    def _forget_best(self, except_version: int) -> None:
        """Delete the weights of versions that are no longer the best."""
        for path in self.folder.glob(BEST.format("*")):
            if path.name != BEST.format(except_version):
                path.unlink()

    def _after_instant(self) -> None:
        self.evaluator.look(self.loop)
        target = self.experiment.limits.target
        if target is not None and not self.server.over and self.evaluator.reached(self.server, target):
            self.loop.tell.stop(f"target {target:g}", self.loop.clock.now())
        now = time.monotonic()
        whole = self.journal is not None or self.loop.settled
        if now - self._saved >= self.experiment.checkpoint_every and whole and not self.server.over:
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
        server, model = self.server, self.evaluator.model
        server.space.restore(model, server.state)
        # an earlier process may have evaluated this version and written the row
        scores = self.evaluator.scores or self.experiment.world.evaluate(model)
        saved = _save_tensors(self.folder / "model.safetensors", model.module.state_dict())
        best = self.evaluator.best
        if best is not None and self.experiment.keep_best and best.version != server.version:
            if best.tensors:
                _save_tensors(self.folder / "best.safetensors", best.tensors)
            else:  # found before the last checkpoint, by an earlier process
                (self.folder / BEST.format(best.version)).replace(self.folder / "best.safetensors")
        self._forget_best(except_version=-1)
        row = {
            "schema": SCHEMA,
            "strategy": self.experiment.method.name,
            "replaced": list(self.experiment.config.get("replaced", ())),
            "plugins": dict(self.experiment.config.get("plugins", {})),
            "seed": self.experiment.seed,
            "transport": self.experiment.transport.name,
            "clients": server.taking_part,
            "versions": server.version,
            "virtual_seconds": server.now,
            "wall_seconds": time.monotonic() - self._wall,
            "client_tasks": server.landed,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "worst_decile_accuracy": scores.worst_decile,
            "best": None if best is None else {"version": best.version, "accuracy": best.accuracy},
            "target": self.experiment.target,
            "time_to_target": self.evaluator.time_to_target,
            "bytes_up": self.loop.bytes_up,
            "bytes_down": self.loop.bytes_down,
            **self.tally(),
            "notices": [*self.experiment.notices, *absence_notices(server.taking_part, len(server.roster))],
            "failing": server.failing(),
            "updates": server.row(),
            "stopped": server.over,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_rss_worker_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            "weights_sha256": wire_format.digest(wire_format.encode(server.state)),
            "events_sha256": self.record.events.sha256,
            "metrics_sha256": self.record.metrics.sha256,
            "model_sha256": saved,
            "config_sha256": atomic_file.digest(path) if (path := self.folder / "config.yaml").is_file() else None,
            "packages": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
            "mlp_backend": native.backend("mlp"),
            "sum_backend": native.backend("sum"),
        }
        row = json.loads(json.dumps(row))
        row["sha256"] = row_digest(row)
        write_atomic(self.folder / "result.json", json.dumps(row, indent=1) + "\n")
        return Result(self.folder, row)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """A whole safetensors file or none, on the disk on return; its SHA-256."""
    beside = path.with_name(path.name + ".part")
    whole = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    try:
        safetensors.torch.save_file(whole, beside)
    except SafetensorError as error:
        need = sum(t.nbytes for t in whole.values())
        if shutil.disk_usage(path.parent).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    config = path.parent / "config.yaml"
    if config.exists():  # safetensors makes files for their owner alone, whatever the umask
        beside.chmod(config.stat().st_mode & 0o666)
    atomic_file.sync_file(beside)
    found = atomic_file.digest(beside)
    beside.replace(path)
    atomic_file.sync_folder(path.parent)
    return found
