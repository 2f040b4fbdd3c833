"""Runs a composed configuration into a run folder, and resumes an interrupted run.

config.yaml  events.jsonl  metrics.jsonl  model.safetensors  result.json  report.html  checkpoint/
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedhet.config import composition
from fedhet.report import write_report
from fedhet.runs import checkpoint, event_log, run_config
from fedhet.runs.experiment import Experiment, Progress
from fedhet.runs.result import Result
from fedhet.system.atomic_file import DamagedError
from fedhet.system.file_lock import acquired

LOCK_SECONDS = 5.0
"""How long to try for a run folder's lock: workers of a killed process hold it until they notice."""


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked."""


@dataclass(frozen=True)
class Prepared:
    """A checked experiment, and the resolved configuration that it was built from."""

    experiment: Experiment
    resolved: Mapping[str, Any]


def prepare(cfg: DictConfig) -> Prepared:
    """Build and check everything a run needs, without writing. Raises ConfigError and Misfit."""
    resolved = composition.resolved(cfg)
    experiment = Experiment.of(resolved)
    experiment.check()
    return Prepared(experiment, resolved)


def claim(parent: Path, name: str) -> Path:
    """A new empty folder `parent/name`, or `name-2`, `name-3`, ... if that exists.

    The folder is created here, so two processes that call this at the same time get two folders. Raises RunFolderError.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunFolderError(f"out={parent} is a file; run folders need a folder") from None
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def run(
    cfg: DictConfig, out: Path, *, progress: Progress | None = None, tell: Callable[[str], None] = lambda notice: None
) -> Result:
    """Run one experiment into the empty or absent folder `out`. `tell` is called with each notice before the start.

    Raises ConfigError or Misfit before anything is written; RunFolderError if `out` is not empty.
    """
    return start(prepare(cfg), out, progress=progress, tell=tell)


def start(
    prepared: Prepared,
    out: Path,
    *,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda notice: None,
) -> Result:
    """Run a prepared experiment into the empty or absent folder `out`. Raises RunFolderError if it is not empty."""
    refusal = f"{out} is not empty: choose another folder, or continue it with --resume {out}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(refusal)
    out.mkdir(parents=True, exist_ok=True)
    try:
        event_log.write_new(out / "config.yaml", run_config.text(prepared.resolved))
    except FileExistsError:  # another process created it first
        raise RunFolderError(refusal) from None
    with _locked(out):
        for notice in prepared.experiment.notices:
            tell(notice)
        return _with_report(prepared.experiment.run(out, progress=progress))


def resume(folder: Path, *, progress: Progress | None = None, workers: int | None = None) -> Result:
    """Continue a run from its last checkpoint, bit for bit in virtual time; a finished run is returned unchanged.

    `workers` changes the number of worker processes, which changes no result.
    """
    if (folder / "result.json").is_file():
        result = Result.read(folder)
        result.check_all()
        return result
    path = folder / "config.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no config.yaml")
    resolved = run_config.read(path, _remembered(folder))
    if workers is not None:
        resolved["workers"] = workers
    with _locked(folder):
        return _with_report(Experiment.of(resolved).run(folder, resume=True, progress=progress))


def _remembered(folder: Path) -> Mapping[str, Any] | None:
    """The configuration in the run's last checkpoint; None without a readable checkpoint."""
    try:
        stored: Mapping[str, Any] = checkpoint.peek(folder)["config"]
    except DamagedError:
        return None
    return stored


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process per run folder. The lock is on config.yaml, which is never replaced, and ends with the process.

    Raises RunFolderError while another process works on the folder.
    """
    with (folder / "config.yaml").open("r+b" if os.access(folder / "config.yaml", os.W_OK) else "rb") as file:
        if not acquired(file.fileno(), LOCK_SECONDS):
            raise RunFolderError(f"{folder}: another process works on this run; wait for it, or stop it first")
        yield


def _with_report(result: Result) -> Result:
    write_report(result.path)
    return result
