"""The end of a run: the final weights, the best ones, and result.json."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedhet import native
from fedhet.flower.event_loop import EventLoop
from fedhet.flower.node_directory import absence_notices
from fedhet.numerics import wire_format
from fedhet.runs.evaluator import Evaluator
from fedhet.runs.event_log import write_atomic
from fedhet.runs.experiment import Experiment
from fedhet.runs.result import SCHEMA, Result, row_digest
from fedhet.system import atomic_file

PACKAGES = ("flwr", "torch", "numpy", "peft", "hydra-core", "safetensors", "scikit-learn")
"""Packages whose versions a result names."""


BEST = "best-{}.safetensors"
"""The best version's weights next to a checkpoint; a finished run has best.safetensors if the last is not the best."""


def finish(
    experiment: Experiment,
    folder: Path,
    loop: EventLoop,
    evaluator: Evaluator,
    tally: Mapping[str, Any],
    wall_seconds: float,
) -> Result:
    """Write the weights and result.json of a run that is over. `tally` are additional entries of the result."""
    server, model, record = loop.server, evaluator.model, evaluator.record
    server.space.restore(model, server.state)
    # an earlier process may have evaluated this version and logged the row
    scores = evaluator.scores or experiment.world.evaluate(model)
    saved = save_tensors(folder / "model.safetensors", model.module.state_dict())
    best = evaluator.best
    if best is not None and experiment.keep_best and best.version != server.version:
        if best.tensors:
            save_tensors(folder / "best.safetensors", best.tensors)
        else:  # found before the last checkpoint, by an earlier process
            (folder / BEST.format(best.version)).replace(folder / "best.safetensors")
    forget_best(folder, except_version=-1)
    row = {
        "schema": SCHEMA,
        "strategy": experiment.method.name,
        "replaced": list(experiment.config.get("replaced", ())),
        "plugins": dict(experiment.config.get("plugins", {})),
        "seed": experiment.seed,
        "transport": experiment.transport.name,
        "clients": server.taking_part,
        "versions": server.version,
        "virtual_seconds": server.now,
        "wall_seconds": wall_seconds,
        "client_tasks": server.landed,
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "worst_decile_accuracy": scores.worst_decile,
        "best": None if best is None else {"version": best.version, "accuracy": best.accuracy},
        "target": experiment.target,
        "time_to_target": evaluator.time_to_target,
        "bytes_up": loop.bytes_up,
        "bytes_down": loop.bytes_down,
        **tally,
        "notices": [*experiment.notices, *absence_notices(server.taking_part, len(server.roster))],
        "failing": server.failing(),
        "updates": server.row(),
        "stopped": server.over,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_rss_worker_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "weights_sha256": wire_format.digest(wire_format.encode(server.state)),
        "events_sha256": record.events.sha256,
        "metrics_sha256": record.metrics.sha256,
        "model_sha256": saved,
        "config_sha256": atomic_file.digest(path) if (path := folder / "config.yaml").is_file() else None,
        "packages": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
        "mlp_backend": native.backend("mlp"),
        "sum_backend": native.backend("sum"),
    }
    row = json.loads(json.dumps(row))
    row["sha256"] = row_digest(row)
    write_atomic(folder / "result.json", json.dumps(row, indent=1) + "\n")
    return Result(folder, row)


def forget_best(folder: Path, *, except_version: int) -> None:
    """Delete the weights of versions that are no longer the best."""
    for path in folder.glob(BEST.format("*")):
        if path.name != BEST.format(except_version):
            path.unlink()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically, synced on return; returns its SHA-256. Raises OSError."""
    part = path.with_name(path.name + ".part")
    contiguous = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    try:
        safetensors.torch.save_file(contiguous, part)
    except SafetensorError as error:
        need = sum(t.nbytes for t in contiguous.values())
        if shutil.disk_usage(path.parent).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    config = path.parent / "config.yaml"
    if config.exists():  # safetensors creates files for their owner alone, whatever the umask
        part.chmod(config.stat().st_mode & 0o666)
    atomic_file.sync_file(part)
    found = atomic_file.digest(part)
    part.replace(path)
    atomic_file.sync_folder(path.parent)
    return found
