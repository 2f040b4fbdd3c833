"""`fedhet compare` and `fedhet demo`: every combination of comma lists, each run in its own folder, one table.

The folder is the memory: a run that is finished there is kept, one that was interrupted is continued.
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
from fedhet.cli.common import new_folder, notice, put, resume_in, run_in
from fedhet.config import composition, overrides
from fedhet.display import shown_lines
from fedhet.errors import ConfigError, InputError, Interrupted, RunFailed
from fedhet.provenance import source_tree
from fedhet.runs.event_log import write_atomic

HOW = ("workers", "out", "checkpoint", "target", "replaced")
"""Keys that do not make a run another run."""

TASKS = 720
"""Where every run of a comparison ends unless it is told: a version is one task to an asynchronous method and all of a
round to others, so that equally many versions compare nothing."""


@dataclass(frozen=True)
class Planned:
    """One run of a comparison: its name is its folder."""

    name: str
    cfg: DictConfig
    resolved: Mapping[str, Any]
    parts: tuple[str, ...] = ()
    """The overrides that set it apart from the others."""


def compare(texts: Sequence[str], out: Path | None, resume: Path | None, folder: Path | None, as_json: bool) -> None:
    """The command, with its options in the order of `fedhet.cli.compare`."""
    if resume is not None:
        if out is not None or texts or folder is not None:
            raise InputError("--resume goes on with what the folder says; give it alone")
        texts, folder = _remembered(resume)
        out = resume
    planned = plan(texts, folder)
    for one in planned:  # all that have not begun, before any of them does
        if out is None or not (out / one.name / "config.yaml").is_file():
            _prepared(one)
    where = out or new_folder(planned[0].cfg, "compare")
    _remember(where, texts, folder, planned)
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
        conclude(finished, where, as_json)
    if failed:
        raise RunFailed(f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed)}")


def demo(texts: Sequence[str], out: Path | None, as_json: bool) -> None:
    """The comparison in conf/demo.yaml; what is typed replaces what it says of the same key."""
    preset = [str(t) for t in _mapping(source_tree.conf() / "demo.yaml")["overrides"]]
    typed = {one.key_or_group for one in overrides.parse(texts)}
    kept = [t for t in preset if t.partition("=")[0] not in typed]
    compare([*kept, *texts], out, None, None, as_json)


def plan(texts: Sequence[str], folder: Path | None) -> list[Planned]:
    """Every combination, composed and its method built, before any is run. Raises ConfigError and Misfit."""
    from fedhet.config import factory

    swept, planned = overrides.sweeps(texts), dict[str, Planned]()
    ends = {one.key_or_group for one in overrides.parse(texts)} - {"stop.target"}
    told = any(key.partition(".")[0] == "stop" for key in ends)
    usual = composition.compose([], folder).stop
    for combination in overrides.product(texts):
        cfg = composition.compose(combination, folder)
        if not told and {**cfg.stop, "target": None} == {**usual, "target": None}:
            cfg.stop.versions, cfg.stop.tasks = None, TASKS
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
    """Run it, continue it or keep it; returns its folder."""
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
    """Raises InputError if the folder holds a run of another configuration than this one."""
    before = _mapping(folder / "config.yaml")
    if differ := different(_what(before), _what(resolved)):
        raise InputError(
            f"{folder} holds a run of another configuration ({', '.join(differ[:3])}): choose another folder with --out"
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
        raise InputError(f"{path} holds no configuration")
    return dict(former_names.current({str(key): value for key, value in loaded.items()}))


def _what(resolved: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in resolved.items() if k not in HOW}


def _remember(where: Path, texts: Sequence[str], folder: Path | None, planned: Sequence[Planned]) -> None:
    if where.exists() and not where.is_dir():
        raise InputError(f"{where} is a file; a comparison needs a folder")
    where.mkdir(parents=True, exist_ok=True)
    row = {
        "overrides": list(texts),
        "config_dir": None if folder is None else str(folder.resolve()),
        "runs": {one.name: list(one.parts) for one in planned},
    }
    write_atomic(where / "compare.json", json.dumps(row, indent=1) + "\n")


def _remembered(where: Path) -> tuple[list[str], Path | None]:
    path = where / "compare.json"
    if not path.is_file():
        raise InputError(f"{where} holds no comparison: there is no compare.json")
    row = json.loads(path.read_text())
    return [str(t) for t in row["overrides"]], None if row["config_dir"] is None else Path(row["config_dir"])


def conclude(folders: Sequence[Path], where: Path, as_json: bool) -> None:
    """The table on standard output (or its rows as JSON), the page in the folder, and last the folder."""
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
        put(comparison_table(results, target))
    sys.stdout.flush()
    for told in without_effect(rows):  # behind the table, where it is read
        notice(told)
    if not as_json:
        print(where)
