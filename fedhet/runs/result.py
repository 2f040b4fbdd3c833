"""The result of a run as an object: the row of result.json, and the evaluations as arrays.

result.json, schema 2:

    strategy, seed, transport, clients       what was run
    replaced, plugins                        axes that differ from the strategy's (rule=krum); the hash of every module
                                             of a plug-in from outside of fedhet
    versions                                 combinations applied to the model
    virtual_seconds, wall_seconds            the run's clock at the end; real time, interrupted processes included
    client_tasks                             jobs that ended, with or without an update
    accuracy, loss, worst_decile_accuracy    of the last version on the test data; the last one is the mean of the worst
                                             tenth of the clients, each on data distributed like its own
    best                                     the most accurate evaluated version, the first of equal ones, and its
                                             accuracy; best.safetensors has it if it is stored and not the last
    target, time_to_target                   share, and seconds of the run's clock to its first evaluation (null: never)
    bytes_up, bytes_down                     payloads with their headers
    energy_joules, batteries_exhausted       virtual time only: energy of training on clients that declare it, and how
                                             many of them used more than their battery has (null: none declares it)
    updates                                  dispatched = accepted + late + rejected + failed + buffered + unfinished;
                                             late, rejected and failed by reason
    failing                                  clients whose jobs fail by their own fault, one sentence per cause
    stopped                                  the limit that ended the run
    peak_rss_bytes, peak_rss_worker_bytes    peak resident memory of the main process; of the largest ended child
    weights_sha256, events_sha256            of the final state's payload and of events.jsonl
    metrics_sha256, model_sha256,            of the files metrics.jsonl, model.safetensors, config.yaml (null: there is
    config_sha256                            none)
    sha256                                   hash of this row without this entry, see `row_digest`
    packages                                 versions of Python and of the packages results depend on
    mlp_backend                              what took the steps of small perceptrons: "compiled", or "torch (WHY)" or
                                             "autograd (WHY)", which differ in their last bits; former rows call it
                                             small_steps
    sum_backend                              what computed large weighted sums: "compiled" or "torch (WHY)", with equal
                                             bits; former rows do not say
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedhet.runs.event_log import read_rows
from fedhet.system import atomic_file
from fedhet.system.atomic_file import DamagedError

SCHEMA = 2
RENAMED = {"small_steps": "mlp_backend"}
"""Former names of entries."""


def row_digest(row: Mapping[str, Any]) -> str:
    """The SHA-256 of a row as sorted JSON without spaces, without its entry `sha256`."""
    plain = {key: value for key, value in row.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Result:
    """A finished run. `row` is result.json, its entries by their present names; the arrays have one entry per
    evaluation."""

    path: Path
    row: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Result:
        """A finished run from its folder. Raises ValueError if the run is not finished, DamagedError if result.json was
        altered."""
        path = folder / "result.json"
        if not path.is_file():
            raise ValueError(f"{folder} holds no finished run: there is no result.json")
        otherwise = f"delete it and go on with: fedhet run --resume {folder}"
        try:
            row = json.loads(path.read_text())
        except ValueError as error:
            raise DamagedError(f"{path} is not JSON ({error}): {otherwise}") from None
        if not isinstance(row, dict) or (row.get("schema") != 1 and row.get("sha256") != row_digest(row)):
            raise DamagedError(f"{path} is not what the run wrote: {otherwise}")
        return cls(folder, {RENAMED.get(str(key), str(key)): value for key, value in row.items()})

    def check(self, name: str) -> None:
        """Raises DamagedError if model.safetensors, metrics.jsonl, events.jsonl or config.yaml is not what the
        run wrote."""
        key = name.partition(".")[0] + "_sha256"
        if self.row.get("schema") != 1 and self.row.get(key):  # schema 1 has the hash of one file only
            again = f"delete result.json and go on with: fedhet run --resume {self.path}"
            otherwise = f"put it back from a copy, or {again}"
            atomic_file.check(self.path / name, self.row[key], otherwise)

    def check_all(self) -> None:
        """Raises DamagedError if any file of the finished run is not what it wrote."""
        for name in ("config.yaml", "model.safetensors", "metrics.jsonl", "events.jsonl"):
            self.check(name)

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """Columns of metrics.jsonl: t (seconds), version, accuracy, loss, worst_decile_accuracy, bytes_up, bytes_down,
        client_tasks; float64 (evaluations,)."""
        self.check("metrics.jsonl")
        rows = read_rows(self.path / "metrics.jsonl")
        return {key: np.array([row[key] for row in rows], dtype=np.float64) for key in (rows[0] if rows else {})}

    def __getitem__(self, column: str) -> np.ndarray:
        return self.metrics[column]
