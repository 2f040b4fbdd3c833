"""`fedhet run --multirun`: every combination of comma lists through Hydra's sweeper and launcher.

Each run has a numbered folder in the sweep's folder, which holds the state as with `fedhet compare`: finished runs are
kept, interrupted ones are continued. A failed run is one line on standard error; the others continue.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedhet.cli.common import new_folder, resume_in, run_in
from fedhet.cli.compare import print_comparison, same_run
from fedhet.config import composition, overrides
from fedhet.display import shown_lines
from fedhet.errors import ConfigError, InputError, Interrupted, RunFailed
from fedhet.provenance import source_tree
from fedhet.runs.event_log import write_atomic

STATE_FILE = "sweep.json"
"""File of a sweep's folder that lists its runs."""


def sweep(texts: Sequence[str], out: Path | None, resume: Path | None, folder: Path | None, as_json: bool) -> None:
    """`fedhet run --multirun`, with a table and a page at the end as of `fedhet compare`.

    Raises ConfigError and Misfit for any combination before the first one runs, InputError for a folder with other
    contents, RunFailed with the names of failed combinations, and Interrupted.
    """
    if resume is not None:
        if out is not None or texts or folder is not None:
            raise InputError(
                "--multirun --resume continues with the folder's overrides; use it without other arguments"
            )
        texts, folder = _read_plan(resume)
    texts, out = _sweep_folder(texts, resume or out)
    foreign = any(t.startswith("hydra/sweeper") for t in texts)
    plain = [t for t in texts if not t.lstrip("+").startswith(("hydra.", "hydra/"))]
    combinations = [] if foreign else overrides.product(plain)
    for combination in combinations:
        _check(composition.compose(combination, folder))
    single = [t for t in plain if t.partition("=")[0] not in overrides.sweeps(plain)]
    where = out or new_folder(composition.compose(single, folder), "sweep")
    swept = overrides.sweeps(plain)
    names = [",".join(t for t in c if t.partition("=")[0].lstrip("+") in swept) for c in combinations]
    _write_plan(where, texts, folder, names, continues=not foreign)
    arguments = [*texts, f"hydra.sweep.dir={_quoted(where)}", "--multirun"]
    if folder is not None:
        arguments += ["--config-dir", str(folder.resolve())]
    try:
        _hydra(arguments)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; continue with: fedhet run --multirun --resume {where}") from None
    _finish(where, names, as_json)


def _finish(where: Path, names: Sequence[str], as_json: bool) -> None:
    folders = sorted((p for p in where.iterdir() if p.is_dir()), key=lambda p: (len(p.name), p.name))
    finished = [p for p in folders if (p / "result.json").is_file()]
    failed = [p.name for p in folders if p not in finished]
    total = len(folders)
    if names:  # with Hydra's own sweeper folder k belongs to combination k
        done, total = {p.name for p in finished}, len(names)
        failed = [name or f"run {k}" for k, name in enumerate(names) if str(k) not in done]
    for path in folders:
        if not any(path.iterdir()):
            path.rmdir()  # Hydra creates a run's folder before the run is checked
    if finished:
        print_comparison(finished, where, as_json)
    if failed:
        raise RunFailed(f"{len(failed)} of {total} runs failed: {'; '.join(failed)}")


def _check(cfg: DictConfig) -> Mapping[str, Any]:
    """Check that a configuration can run. Raises ConfigError and Misfit."""
    from fedhet.runs import runner

    return runner.prepare(cfg).resolved


def _sweep_folder(texts: Sequence[str], out: Path | None) -> tuple[list[str], Path | None]:
    """Split `hydra.sweep.dir` off the overrides; returns the others and the folder, which --out overrides."""
    kept = []
    for text in texts:
        key, _, value = text.lstrip("+").partition("=")
        if key == "hydra.sweep.subdir":
            raise InputError(
                f"{text!r}: the runs of a sweep are in folders named by their number; only --out can be chosen"
            )
        if key == "hydra.sweep.dir" and value:
            out = out or Path(value.strip("'\""))
        else:
            kept.append(text)
    return kept, out


def _write_plan(where: Path, texts: Sequence[str], folder: Path | None, names: Sequence[str], continues: bool) -> None:
    """Write the list of runs. Raises InputError if the folder contains another sweep or other files."""
    row = {
        "overrides": list(texts),
        "config_dir": None if folder is None else str(folder.resolve()),
        "runs": {str(k): name.split(",") if name else [] for k, name in enumerate(names)},
    }
    if where.exists() and (not where.is_dir() or any(where.iterdir())):
        if not (where / STATE_FILE).is_file():
            raise InputError(f"{where} is not empty: choose another folder with --out")
        if json.loads((where / STATE_FILE).read_text()) != row:
            raise InputError(f"{where} contains a sweep of other overrides: choose another folder with --out")
        if not continues:
            raise InputError(f"{where}: an adaptive sweeper cannot be continued; choose another folder")
    where.mkdir(parents=True, exist_ok=True)
    write_atomic(where / STATE_FILE, json.dumps(row, indent=1) + "\n")


def _read_plan(where: Path) -> tuple[list[str], Path | None]:
    path = where / STATE_FILE
    if not path.is_file():
        raise InputError(f"{where} contains no sweep: there is no {STATE_FILE}")
    row = json.loads(path.read_text())
    return [str(t) for t in row["overrides"]], None if row["config_dir"] is None else Path(row["config_dir"])


def _quoted(path: Path) -> str:
    text = str(path.resolve())
    if "'" in text:
        raise ConfigError(f"{text}: Hydra allows no quotes in a folder's name")
    return f"'{text}'"


def _hydra(arguments: Sequence[str]) -> None:
    import hydra

    before = sys.argv
    sys.argv = ["fedhet", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(source_tree.conf()), config_name="config")(sweep_job)()
    except SystemExit as error:
        if error.code:
            raise RunFailed("the sweep failed; Hydra's message is above") from None
    finally:
        sys.argv = before


def sweep_job(cfg: DictConfig) -> float | None:
    """Run one job of a sweep; returns its accuracy, for sweepers that optimise, or NaN if it failed."""
    from hydra.core.hydra_config import HydraConfig

    hydra_cfg = HydraConfig.get()
    out, texts = Path(hydra_cfg.runtime.output_dir), list(hydra_cfg.overrides.task)
    own = [source.path for source in hydra_cfg.runtime.config_sources if source.provider == "command-line"]
    try:
        composition.note_replaced(cfg, hydra_cfg.runtime.choices, Path(own[0]) if own else None)
        accuracy = _run(cfg, out).row["accuracy"]
    except (KeyboardInterrupt, Interrupted):
        raise KeyboardInterrupt from None  # Hydra treats any other exception as the job's failure
    except Exception as error:
        told = str(error) or type(error).__name__
        print(shown_lines(f"error: {out.name} ({' '.join(texts)}): {told}"), file=sys.stderr, flush=True)
        return float("nan")
    return None if accuracy is None else float(accuracy)


def _run(cfg: DictConfig, out: Path) -> Any:
    """Run it, continue it, or keep its result."""
    if (out / "config.yaml").is_file():
        resolved = composition.resolved(cfg)
        same_run(out, resolved)
        return resume_in(out, int(resolved["workers"]), out.name)
    return run_in(cfg, out, out.name)
