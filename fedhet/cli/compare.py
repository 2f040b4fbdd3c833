"""`fedhet compare` and `fedhet demo`: every combination of comma lists, each run in its own folder, and one table.

The state is in the folder: runs that are finished there are kept, interrupted ones are continued.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedhet import former_names
from fedhet.cli.common import new_folder, notice, print_table, resume_in, run_in
from fedhet.config import composition, overrides
from fedhet.display import shown_lines
from fedhet.errors import ConfigError, InputError, Interrupted, RunFailed
from fedhet.provenance import source_tree
from fedhet.runs.event_log import write_atomic

EXECUTION_KEYS = ("workers", "out", "checkpoint", "target", "replaced")
"""Keys in which two configurations of the same run may differ."""

DEFAULT_TASKS = 720
"""Client tasks at which every run of a comparison stops by default. Versions would not be comparable: an asynchronous
method makes one per task, others one per round."""


@dataclass(frozen=True)
class Planned:
    """One run of a comparison; `name` is its folder."""

    name: str
    cfg: DictConfig
    resolved: Mapping[str, Any]
    parts: tuple[str, ...] = ()
    """The overrides in which it differs from the other runs."""


def compare(texts: Sequence[str], out: Path | None, resume: Path | None, folder: Path | None, as_json: bool) -> None:
    """`fedhet compare`. Raises InputError, ConfigError, Misfit, RunFailed and Interrupted."""
    if resume is not None:
        if out is not None or texts or folder is not None:
            raise InputError("--resume continues with the folder's overrides; use it without other arguments")
        texts, folder = _read_plan(resume)
        out = resume
    planned = plan(texts, folder)
    for one in planned:  # check every run that has not begun before the first one runs
        if out is None or not (out / one.name / "config.yaml").is_file():
            _prepared(one)
    where = out or new_folder(planned[0].cfg, "compare")
    _write_plan(where, texts, folder, planned)
    finished, failed = [], []
    for k, one in enumerate(planned, 1):
        label = f"{one.name} ({k}/{len(planned)})"
        try:
            finished.append(_run(one, where / one.name, label))
        except RunFailed as error:
            failed.append(one.name)
            print(f"error: {shown_lines(error)}", file=sys.stderr)
        except Interrupted:
            raise Interrupted(f"interrupted; continue with: fedhet compare --resume {where}") from None
    if finished:
        print_comparison(finished, where, as_json)
    if failed:
        raise RunFailed(f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed)}")


def demo(texts: Sequence[str], out: Path | None, as_json: bool) -> None:
    """`fedhet demo`: the comparison in conf/demo.yaml; overrides replace its values for the same keys."""
    preset = [str(t) for t in _mapping(source_tree.conf() / "demo.yaml")["overrides"]]
    typed = {one.key_or_group for one in overrides.parse(texts)}
    kept = [t for t in preset if t.partition("=")[0] not in typed]
    compare([*kept, *texts], out, None, None, as_json)


def plan(texts: Sequence[str], folder: Path | None) -> list[Planned]:
    """Compose every combination and build its method. Raises ConfigError and Misfit."""
    from fedhet.config import factory

    swept, planned = overrides.sweeps(texts), dict[str, Planned]()
    ends = {one.key_or_group for one in overrides.parse(texts)} - {"stop.target"}
    stop_given = any(key.partition(".")[0] == "stop" for key in ends)
    usual = composition.compose([], folder).stop
    for combination in overrides.product(texts):
        cfg = composition.compose(combination, folder)
        if not stop_given and {**cfg.stop, "target": None} == {**usual, "target": None}:
            cfg.stop.versions, cfg.stop.tasks = None, DEFAULT_TASKS
        resolved = composition.resolved(cfg)
        factory.method(resolved)
        parts = [t for t in combination if t.partition("=")[0].lstrip("+") in swept]
        name = re.sub(r"[^\w.,=+-]", "_", ",".join(parts)) or "run"
        if len(name) > 200 or name in planned:
            name = f"run-{len(planned)}"
        planned[name] = Planned(name, cfg, resolved, tuple(parts))
    targets = {p.resolved["target"] for p in planned.values()}
    if len(targets) > 1:
        raise ConfigError(f"target={','.join(f'{t:g}' for t in sorted(targets))}: a comparison has one target")
    return list(planned.values())


def _prepared(one: Planned) -> None:
    from fedhet.runs import runner

    try:
        runner.prepare(one.cfg)
    except ValueError as error:
        raise InputError(f"{one.name}: {error}") from error


def _run(one: Planned, folder: Path, label: str) -> Path:
    """Run it, continue it, or keep its result; returns its folder."""
    from fedhet.runs.result import Result

    if (folder / "config.yaml").is_file():
        same_run(folder, one.resolved)
        if (folder / "result.json").is_file():
            Result.read(folder).check_all()
            print(f"{label}: finished before, kept", file=sys.stderr)
            return folder
        return resume_in(folder, int(one.resolved["workers"]), label).path
    return run_in(one.cfg, folder, label).path


def same_run(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Raises InputError if the folder contains a run of another configuration."""
    before = _mapping(folder / "config.yaml")
    if differ := different(_method_keys(before), _method_keys(resolved)):
        raise InputError(
            f"{folder} contains a run of another configuration ({', '.join(differ[:3])}): choose another one with --out"
        )


def different(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ."""
    found = []
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += different(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _mapping(path: Path) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not isinstance(loaded, dict):
        raise InputError(f"{path} contains no configuration")
    return dict(former_names.current({str(key): value for key, value in loaded.items()}))


def _method_keys(resolved: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in resolved.items() if k not in EXECUTION_KEYS}


def _write_plan(where: Path, texts: Sequence[str], folder: Path | None, planned: Sequence[Planned]) -> None:
    if where.exists() and not where.is_dir():
        raise InputError(f"{where} is a file; a comparison needs a folder")
    where.mkdir(parents=True, exist_ok=True)
    row = {
        "overrides": list(texts),
        "config_dir": None if folder is None else str(folder.resolve()),
        "runs": {one.name: list(one.parts) for one in planned},
    }
    write_atomic(where / "compare.json", json.dumps(row, indent=1) + "\n")


def _read_plan(where: Path) -> tuple[list[str], Path | None]:
    path = where / "compare.json"
    if not path.is_file():
        raise InputError(f"{where} contains no comparison: there is no compare.json")
    row = json.loads(path.read_text())
    return [str(t) for t in row["overrides"]], None if row["config_dir"] is None else Path(row["config_dir"])


def print_comparison(folders: Sequence[Path], where: Path, as_json: bool) -> None:
    """Print the table (or its rows as JSON), write the page, and print the folder last."""
    from fedhet.report import comparison_rows, comparison_table, write_comparison
    from fedhet.report.run_groups import read
    from fedhet.report.run_labels import without_effect

    rows, target = read(folders), None
    results = [row.data for row in rows]
    if (where / "compare.json").is_file():
        target = float(_mapping(folders[-1] / "config.yaml")["target"])
    write_comparison(folders, where / "comparison.html", target=target)
    if as_json:
        print(json.dumps(comparison_rows(results, target), indent=1))
    else:
        print_table(comparison_table(results, target))
    sys.stdout.flush()
    for stop_given in without_effect(rows):  # after the table, where it is seen
        notice(stop_given)
    if not as_json:
        print(where)
