"""Shared parts of commands: a run in its folder with progress and failure messages, notices, tables."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fedhet.cli.progress import Bar, told_if_long
from fedhet.display import shown
from fedhet.errors import InputError, Interrupted, RunFailed

if TYPE_CHECKING:
    from fedhet.runs.result import Result

MAX_NAME = 120
"""Characters of a method's name in a folder's name, at most."""


def run_in(cfg: DictConfig, out: Path | None, name: str | None = None) -> Result:
    """Run a configuration into a folder, with progress; None: a new folder below the configuration's `out`.

    Raises RunFailed, Interrupted, and what bad input raises; after bad input no folder is left.
    """
    from fedhet.runs import runner

    with told_if_long(_built(cfg)):
        prepared = runner.prepare(cfg)
    folder = out or new_folder(cfg)
    with _removed_if_empty(folder), failures(folder), Bar(name or _method(cfg)) as show:
        return runner.start(prepared, folder, progress=show, tell=notice)


def _built(cfg: DictConfig) -> str:
    """What is built before a run begins, in a line."""
    fleet = cfg["fleet"].get("clients")
    who = f"{fleet} clients" if isinstance(fleet, int) else "the clients"
    return f"{cfg['strategy']}: building {who}, their data and the model, and trying a first round"


@contextlib.contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """Context manager: remove the folder after an exception if it is empty."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # it is not empty, or does not exist
            folder.rmdir()
        raise


def notice(text: str) -> None:
    """Print a notice on standard error."""
    print(f"notice: {shown(text)}", file=sys.stderr, flush=True)


def resume_in(folder: Path, workers: int | None = None, name: str | None = None) -> Result:
    """Continue the run in a folder, or read its result if it is finished. Raises RunFailed and Interrupted."""
    from fedhet.runs import runner

    with failures(folder), Bar(name or folder.name) as show:
        return runner.resume(folder, progress=show, workers=workers)


@contextlib.contextmanager
def failures(out: Path) -> Iterator[None]:
    """Context manager: an exception after the run has begun becomes RunFailed or Interrupted; one before that is bad
    input and passes unchanged."""
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
            raise  # the folder of an earlier run was refused
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f"free space, then: fedhet run --resume {out}" if full else "--debug shows where"
        raise RunFailed(f"{out}: {type(error).__name__}: {error} ({hint})") from error


def new_folder(cfg: DictConfig, kind: str | None = None) -> Path:
    """Create a folder below `out`, named by method, seed and time, or by `kind` and time."""
    from fedhet.runs import runner

    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    method = re.sub(r"[^\w.=+-]", "_", _method(cfg).replace(" + ", "+"))[:MAX_NAME]
    name = f"{kind}-{stamp}" if kind else f"{method}-seed{cfg['seed']}-{stamp}"
    return runner.claim(Path(str(cfg["out"])), name)


def _method(cfg: DictConfig) -> str:
    """A method's name: its strategy and the parts that replace the strategy's."""
    return " + ".join([str(cfg["strategy"]), *map(str, cfg["replaced"])])


def print_result(result: Result, as_json: bool) -> None:
    """Print a result: JSON, or a table followed by the folder."""
    if as_json:
        print(json.dumps(result.row, indent=1))
        return
    from fedhet.report import summary_table

    print_table(summary_table(result.row))
    print(result.path)


def print_table(table: Table) -> None:
    """Print a table at its natural width: on a narrow terminal lines wrap and nothing is cut."""
    console = Console()
    natural = Console(width=10_000).measure(table).maximum
    Console(width=max(console.width, natural), soft_wrap=True).print(table, crop=False)
