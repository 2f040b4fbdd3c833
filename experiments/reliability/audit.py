"""Audit of a finished live run: the updates in write-ahead log, event log and result must agree."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from fedhet.numerics import wire_format
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.runs.session import Session


@dataclass(frozen=True)
class Ledger:
    """Updates of one run. `lost` were accepted and are nowhere, `doubled` are in more than one place; `lives` is how
    many server processes worked on it, `again` whether the journal alone leads to the model (None: it was cut)."""

    accepted: int
    combined: int
    dropped: int
    buffered: int
    failed: int
    lost: int
    doubled: int
    again: bool | None


def audit(folder: Path) -> Ledger:
    """Count. Raises AssertionError if the three sides disagree about anything but lost and doubled updates."""
    with sqlite3.connect(folder / "journal.db") as db:
        accepted = [job for (job,) in db.execute("SELECT job FROM rows WHERE kind = 'arrived' ORDER BY n")]
        failed = db.execute("SELECT count(*) FROM rows WHERE kind IN ('failed', 'reject')").fetchone()[0]
    rows = read_rows(folder / "events.jsonl")
    result = json.loads((folder / "result.json").read_text())
    arrived = [row["job"] for row in rows if row["event"] == "arrived"]
    combined = [job for row in rows if row["event"] == "combined" for job in row["jobs"]]
    dropped = [job for row in rows if row["event"] == "dropped" for job in row["jobs"]]
    buffered = int(result["updates"]["buffered"])
    places = Counter(combined + dropped)
    lost = len(set(accepted) - set(arrived)) + len(set(arrived) - set(places)) - buffered
    doubled = sum(n - 1 for n in places.values()) + len(arrived) - len(set(arrived))
    assert len(combined) == result["updates"]["accepted"], "what was combined and what was counted"
    assert set(arrived) <= set(accepted), "what was used and what was written down before"
    return Ledger(len(accepted), len(combined), len(dropped), buffered, failed, lost, doubled, _again(folder, result))


def _again(folder: Path, result: dict[str, object]) -> bool | None:
    """Tell a new server what the journal says, from the first row on; whether it ends with the run's model."""
    if (folder / "checkpoint").exists():
        return None  # which made payloads superfluous
    with tempfile.TemporaryDirectory() as beside:
        copy = Path(beside) / "run"
        shutil.copytree(folder, copy)
        (copy / "result.json").unlink()
        cfg = OmegaConf.to_container(OmegaConf.load(copy / "config.yaml"), resolve=True)
        experiment = Experiment.of(cfg)  # type: ignore[arg-type]
        session = Session(experiment, copy, resume=True, progress=None, code="", sealed=True, journaled=True)
        session.join(None, None, lambda client: client)  # type: ignore[arg-type]  # nothing is sent
        session.record.close()
        return wire_format.digest(wire_format.encode(session.server.state)) == result["weights_sha256"]
