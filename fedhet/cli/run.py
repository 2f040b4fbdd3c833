"""`fedhet run`: one experiment, or a continued one. Sweeps are in `fedhet.cli.sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from fedhet.cli.common import print_result, resume_in, run_in
from fedhet.config import composition, overrides
from fedhet.errors import InputError

if TYPE_CHECKING:
    pass


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
    """`fedhet run`. Raises InputError, ConfigError, Misfit, RunFailed and Interrupted."""
    if show not in (None, "job"):
        raise InputError(f"--cfg {show}: only `--cfg job` prints a configuration")
    if resume is not None and not multirun:
        composition.options(folder)  # its plug-ins are found beside it
        return _resume(resume, texts, as_json, unusable=["--out"] if out else [])
    if multirun:
        if show is None:
            from fedhet.cli import sweep

            return sweep.sweep(texts, out, resume, folder, as_json)
        texts = overrides.product(texts)[0]
    texts, out = hydra_folder(texts, out)
    cfg = composition.compose(texts, folder)
    if show is not None:
        print(
            OmegaConf.to_yaml(OmegaConf.create(composition.resolved(cfg)) if resolve else cfg, resolve=resolve), end=""
        )
        return None
    print_result(run_in(cfg, out), as_json)
    return None


def hydra_folder(texts: Sequence[str], out: Path | None) -> tuple[list[str], Path | None]:
    """Split `hydra.run.dir` off the overrides; returns the others and the folder, which --out overrides.

    Raises InputError for Hydra's other keys, which have no effect without --multirun.
    """
    kept = []
    for text in texts:
        key, _, value = text.lstrip("+").partition("=")
        if key.partition(".")[0].partition("/")[0] != "hydra":
            kept.append(text)
        elif key == "hydra.run.dir" and value:
            out = out or Path(value.strip("'\""))
        else:
            raise InputError(f"{text!r} has no effect on a single run: use --out for its folder, --multirun for sweeps")
    return kept, out


def _resume(folder: Path, texts: Sequence[str], as_json: bool, unusable: Sequence[str]) -> None:
    workers = None
    for one in overrides.parse(texts):
        if one.key_or_group != "workers" or not isinstance(one.value(), int):
            raise InputError(f"{one.input_line!r}: a resumed run keeps its configuration; only workers=N may change")
        workers = one.value()
    if unusable:
        raise InputError(f"{' and '.join(unusable)} cannot be used with --resume: the run goes on in its own folder")
    print_result(resume_in(folder, workers), as_json)
