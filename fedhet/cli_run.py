"""`fedhet run`: one experiment, a continued one, or a sweep by Hydra's own launcher."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from fedhet import config, origin, overrides
from fedhet.errors import ConfigError, InputError, Interrupted, RunFailed
from fedhet.progress import Bar

if TYPE_CHECKING:
    from fedhet.result import Result


def run(
    texts: Sequence[str],
    multirun: bool,
    show: str | None,
    resolve: bool,
    resume: Path | None,
    out: Path | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """The command, with its options in the order of `fedhet.cli.run`."""
    if show not in (None, "job"):
        raise InputError(f"--cfg {show}: only `--cfg job` prints a configuration")
    if resume is not None:
        return _resume(resume, texts, as_json, unusable=[o for o, v in (("--out", out), ("--multirun", multirun)) if v])
    if multirun:
        if show is None:
            return sweep(texts, out, folder, as_json)
        texts = overrides.product(texts)[0]
    cfg = config.compose(texts, folder)
    if show is not None:
        print(OmegaConf.to_yaml(OmegaConf.create(config.resolved(cfg)) if resolve else cfg, resolve=resolve), end="")
        return None
    tell(run_in(cfg, out or new_folder(cfg)), as_json)
    return None


def run_in(cfg: DictConfig, out: Path, name: str | None = None) -> Result:
    """Run a configuration into a folder, showing progress. Raises RunFailed, Interrupted, and what bad input raises."""
    from fedhet import launch

    with failures(out), Bar(name or str(cfg["strategy"])) as show:
        return launch.run(cfg, out, progress=show, tell=notice)


def notice(text: str) -> None:
    """What a method wants to be said plainly, before it starts."""
    print(f"notice: {text}", file=sys.stderr, flush=True)


def resume_in(folder: Path, workers: int | None = None, name: str | None = None) -> Result:
    """Continue the run in a folder, or read it if it is finished."""
    from fedhet import launch

    with failures(folder), Bar(name or folder.name) as show:
        return launch.resume(folder, progress=show, workers=workers)


@contextlib.contextmanager
def failures(out: Path) -> Iterator[None]:
    """What went wrong before the run had begun is bad input and passes; after that, it is a failed run."""
    begun = {path: path.stat().st_mtime_ns for path in (out / "config.yaml",) if path.is_file()}
    try:
        yield
    except KeyboardInterrupt:
        path = out / "config.yaml"
        told = f"; continue with: fedhet run --resume {out}" if path.is_file() else " before it began"
        raise Interrupted(f"interrupted{told}") from None
    except Exception as error:
        path = out / "config.yaml"
        if isinstance(error, InputError) or not path.is_file():
            raise
        if begun.get(path) == path.stat().st_mtime_ns and isinstance(error, ValueError | OSError):
            raise  # an earlier run's folder was refused
        raise RunFailed(f"{out}: {type(error).__name__}: {error} (--debug shows where)") from error


def new_folder(cfg: DictConfig, kind: str | None = None) -> Path:
    """A folder under `out` that does not exist yet, named by strategy, seed and time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{kind or cfg['strategy']}-{stamp}" if kind else f"{cfg['strategy']}-seed{cfg['seed']}-{stamp}"
    path, again = Path(str(cfg["out"])) / name, 2
    while path.exists():
        path, again = path.with_name(f"{name}-{again}"), again + 1
    return path


def tell(result: Result, as_json: bool) -> None:
    """The result on standard output: JSON, or a table and, last, the folder."""
    if as_json:
        print(json.dumps(result.row, indent=1))
        return
    from fedhet.report import summary_table

    put(summary_table(result.row))
    print(result.path)


def put(table: Table) -> None:
    """A table at its natural width: on a narrow terminal its lines wrap and nothing is cut off."""
    console = Console()
    natural = Console(width=10_000).measure(table).maximum
    Console(width=max(console.width, natural), soft_wrap=True).print(table, crop=False)


def _resume(folder: Path, texts: Sequence[str], as_json: bool, unusable: Sequence[str]) -> None:
    workers = None
    for one in overrides.parse(texts):
        if one.key_or_group != "workers" or not isinstance(one.value(), int):
            raise InputError(f"{one.input_line!r}: a resumed run keeps its configuration; only workers=N may change")
        workers = one.value()
    if unusable:
        raise InputError(f"{' and '.join(unusable)} cannot be used with --resume: the run goes on in its own folder")
    tell(resume_in(folder, workers), as_json)


def sweep(texts: Sequence[str], out: Path | None, folder: Path | None, as_json: bool) -> None:
    """Every combination through Hydra's launcher and sweeper, each in a numbered folder; one table at the end."""
    foreign = any(t.startswith("hydra/sweeper") for t in texts)
    plain = [t for t in texts if not t.startswith(("hydra.", "hydra/", "+hydra"))]
    combinations = [] if foreign else overrides.product(plain)
    for combination in combinations:  # all of them, before any is started
        _check(config.compose(combination, folder))
    where = out or new_folder(config.compose([], folder), "sweep")
    if where.exists() and any(where.iterdir()):
        raise InputError(f"{where} is not empty: choose another folder with --out")
    arguments = [*texts, f"hydra.sweep.dir={_quoted(where)}", "--multirun"]
    if folder is not None:
        arguments += ["--config-dir", str(folder.resolve())]
    _hydra(arguments)
    finished = sorted((p.parent for p in where.glob("*/result.json")), key=lambda p: (len(p.name), p.name))
    if combinations and len(finished) < len(combinations):
        raise RunFailed(f"{len(combinations) - len(finished)} of {len(combinations)} runs failed, see {where}")
    from fedhet import cli_compare

    cli_compare.conclude(finished, where, as_json)


def _check(cfg: DictConfig) -> Mapping[str, Any]:
    """A configuration whose method can be built. Raises ConfigError and Misfit."""
    from fedhet import build

    resolved = config.resolved(cfg)
    build.method(resolved)
    return resolved


def _quoted(path: Path) -> str:
    text = str(path.resolve())
    if "'" in text:
        raise ConfigError(f"{text}: Hydra takes no quotes in a folder's name")
    return f"'{text}'"


def _hydra(arguments: Sequence[str]) -> None:
    import hydra

    before = sys.argv
    sys.argv = ["fedhet", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(origin.conf()), config_name="config")(sweep_job)()
    except SystemExit as error:
        if error.code:
            raise RunFailed("the sweep stopped at a run that failed") from None
    finally:
        sys.argv = before


def sweep_job(cfg: DictConfig) -> float | None:
    """One run of a sweep; returns its accuracy, for a sweeper that optimises."""
    from hydra.core.hydra_config import HydraConfig

    out = Path(HydraConfig.get().runtime.output_dir)
    accuracy = run_in(cfg, out, out.name).row["accuracy"]
    return None if accuracy is None else float(accuracy)
