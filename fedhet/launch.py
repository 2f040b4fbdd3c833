"""From a composed configuration to a finished run folder, and back to one that was interrupted.

config.yaml  events.jsonl  metrics.jsonl  model.safetensors  result.json  report.html  checkpoint/
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedhet import config, record
from fedhet.experiment import Experiment, Progress
from fedhet.report import write_report
from fedhet.result import Result


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked."""


def run(
    cfg: DictConfig, out: Path, *, progress: Progress | None = None, tell: Callable[[str], None] = lambda notice: None
) -> Result:
    """Run one experiment into the empty or absent folder `out`. `tell` hears its notices before it starts.

    Raises ConfigError or Misfit before anything is written; RunFolderError if `out` already holds something.
    """
    resolved = config.resolved(cfg)
    experiment = Experiment.of(resolved)
    experiment.check()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out} is not empty: choose another folder, or continue it with --resume {out}")
    out.mkdir(parents=True, exist_ok=True)
    record.write_atomic(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
    for notice in experiment.notices:
        tell(notice)
    return _with_report(experiment.run(out, progress=progress))


def resume(folder: Path, *, progress: Progress | None = None, workers: int | None = None) -> Result:
    """Continue a run from its last checkpoint, bit for bit on virtual time; a finished run is returned as it is.

    `workers` changes the number of worker processes, which changes no result.
    """
    if (folder / "result.json").is_file():
        return Result.read(folder)
    path = folder / "config.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no config.yaml")
    resolved: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # type: ignore[assignment]
    if workers is not None:
        resolved["workers"] = workers
    return _with_report(Experiment.of(resolved).run(folder, resume=True, progress=progress))


def _with_report(result: Result) -> Result:
    write_report(result.path)
    return result
