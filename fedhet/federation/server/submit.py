"""Submitted runs: a composed method that is started through the SuperLink's socket and followed in its run folder.

The ServerApp writes the run folder; Flower is asked only for the run's status and the end of its log.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server.superlink import CONNECTION_NAME, SuperLink
from fedhet.flower import app_bundle
from fedhet.runs import run_config, run_ending
from fedhet.runs.event_log import read_rows, write_atomic
from fedhet.runs.run_ending import RunEnding
from fedhet.system.file_lock import occupied

T = TypeVar("T")
TICKET = "submitted.json"
"""File of a run folder that names its federation and its Flower run id."""
RUNS = "runs"
"""Folder of a federation with one file for each unfinished run, which contains the path of the run folder."""
SUPERLINK_AWAY_S = 120.0
"""Seconds that a SuperLink may be out of reach while a run is followed."""
STOP_NOTICE_S = 5.0
"""Seconds within which Flower reports that a run was stopped through Flower itself."""
RESTART_S = 180.0
"""Seconds to wait for the server to restart a killed run."""
STATUS_INTERVAL_S = 5.0
"""Seconds between status requests."""
LOG_CHARACTERS = 1500
"""Characters of a failed run's log that are shown, from its end."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A submitted run of a federation, and its folder. It begins when `wanted` clients have answered, or `least` have
    and no further one does in time."""

    link: SuperLink
    folder: Path
    run_id: int
    wanted: int = 1
    least: int = 1

    @classmethod
    def begin(cls, link: SuperLink, folder: Path, wanted: int, least: int) -> Submission:
        """Start the run whose config.yaml is in the folder, from its checkpoint if there is one. Raises EnrollError
        E308."""
        run_ending.clear(folder)
        given = {"config": str(folder / "config.yaml"), "folder": str(folder)}
        text = " ".join(f"{k}={json.dumps(v)}" for k, v in given.items()) + f" wanted={wanted} least={least}"
        with tempfile.TemporaryDirectory(prefix="fedhet-submit-") as temporary:
            app = Path(temporary) / "fedhet-run"
            app.mkdir()
            (app / "pyproject.toml").write_text(app_bundle.pyproject(poll=0.2))
            answer = link.flwr("run", str(app), CONNECTION_NAME, "--run-config", text)
        made, home = cls(link, folder, int(answer["run-id"]), wanted, least), link.folder.parent.resolve()
        ticket = {"run_id": made.run_id, "home": str(home), "wanted": wanted, "least": least}
        private_files.write_file(folder / TICKET, json.dumps(ticket) + "\n", 0o644)
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        private_files.write_file(private_files.private_folder(home / RUNS) / f"{name}.run", str(folder))
        return made

    @classmethod
    def of(cls, folder: Path) -> Submission:
        """The run that was submitted with this folder. Raises EnrollError E306 or E312."""
        ticket = _ticket(folder)
        if ticket is None:
            raise EnrollError("E306", f"{folder} contains no submitted run: it has no {TICKET}")
        return cls._from_ticket(SuperLink.served(Path(ticket["home"])), folder, ticket)

    @classmethod
    def _from_ticket(cls, link: SuperLink, folder: Path, ticket: Mapping[str, Any]) -> Submission:
        return cls(link, folder, *(int(ticket[key]) for key in ("run_id", "wanted", "least")))

    @classmethod
    def submitted(cls, link: SuperLink) -> Iterator[tuple[Path, Submission | None]]:
        """The entries of unfinished runs, each with its run; None for a run whose folder is gone."""
        for entry in sorted((link.folder.parent / RUNS).glob("*.run")):
            folder = Path(entry.read_text())
            ticket = _ticket(folder)
            yield entry, None if ticket is None else cls._from_ticket(link, folder, ticket)

    @property
    def done(self) -> bool:
        """Whether the run folder contains a result."""
        return (self.folder / "result.json").is_file()

    def status(self) -> tuple[str, str]:
        """Flower's status of the run (pending, starting, running, finished:...) and its details. Waits for a SuperLink
        that is restarting. Raises EnrollError E308 or E315."""
        return self._retrying(self.status_now)

    def status_now(self) -> tuple[str, str]:
        """`status` without waiting. Raises EnrollError E308, or E315 for a run that this SuperLink does not have."""
        runs = self.link.flwr("list", CONNECTION_NAME, "--run-id", str(self.run_id)).get("runs", [])
        if not runs:
            raise EnrollError("E315", f"the SuperLink has no run {self.run_id}")
        return str(runs[0]["status"]), str(runs[0].get("status-details", ""))

    @property
    def ended(self) -> RunEnding | None:
        """The ending that the run recorded (stopped, failed, given up); None if it recorded none."""
        return run_ending.read(self.folder)

    def restarted(self) -> Submission | None:
        """Wait until the server has restarted the run from its journal; None if it gave up, or after `RESTART_S`."""
        end = time.monotonic() + RESTART_S
        while time.monotonic() < end and self.ended is None:
            ticket = _ticket(self.folder)
            if self.done or (ticket is not None and int(ticket["run_id"]) != self.run_id):
                return replace(self, run_id=int(ticket["run_id"]) if ticket else self.run_id)
            time.sleep(0.5)
        return None

    def _retrying(self, call: Callable[[], T]) -> T:
        """Repeat a call while the SuperLink restarts. Raises EnrollError E308 after `SUPERLINK_AWAY_S`, or if the
        SuperLink listens and the call fails all the same."""
        end, tries = time.monotonic() + SUPERLINK_AWAY_S, 3
        while True:
            try:
                return call()
            except EnrollError as error:
                if error.code != "E308" or time.monotonic() > end:
                    raise
                if self.link.listens():  # another fault, or it has only just come back
                    tries -= 1
                    if not tries:
                        raise
            time.sleep(1.0)

    def stop(self) -> None:
        """Stop the run; its folder keeps the last checkpoint. Raises EnrollError E308 or E315."""
        RunEnding(run_ending.STOPPED, "by the operator").write(self.folder)  # first, or it would count as killed
        try:
            status, _ = self.status()
            if not status.startswith("finished"):  # a finished one was killed; the ending prevents its restart
                self.link.flwr("stop", str(self.run_id), CONNECTION_NAME)
        except EnrollError:
            run_ending.clear(self.folder)
            raise

    def log_end(self) -> str:
        """The end of the ServerApp's log."""
        return self.link.text("log", str(self.run_id), CONNECTION_NAME, "--show")[-LOG_CHARACTERS:].strip()

    def _process_gone(self) -> EnrollError:
        """The error of a run whose process is gone. Without a recorded ending it was killed, unless Flower stopped
        it."""
        status, end = "", time.monotonic() + STOP_NOTICE_S
        while self.ended is None and not self.done and "stopped" not in status and time.monotonic() < end:
            time.sleep(0.5)
            if self.link.listens():
                status, _ = self.status()
        return self.end_error(status)

    def end_error(self, status: str = "") -> EnrollError:
        """Why a run without a result has ended; `data["killed"]` is true if no ending is recorded."""
        ended = self.ended
        if "stopped" in status or (ended is not None and ended.how == run_ending.STOPPED):
            return EnrollError("E315", "it is stopped")
        if ended is None:
            return EnrollError("E314", status or "its process is gone", log=self.log_end(), killed=True)
        return EnrollError("E314", ended.why, log=ended.trace or self.log_end(), killed=False)

    def follow(
        self,
        show: Callable[[Mapping[str, Any]], None],
        limits: Mapping[str, Any],
        sleep: Callable[[float], None] = time.sleep,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `show` with every evaluation until there is a result. `limits` are the limits of the run; `on_step` is
        called at every step, to show the run's notices.

        Raises EnrollError E315 if the run was stopped, E314 if it ends otherwise without a result: `data["log"]` is the
        end of its log, `data["killed"]` whether its process vanished, in which case the server restarts it.
        """
        asked_at, seen, metrics, was_alive = time.monotonic(), 0, self.folder / "metrics.jsonl", False
        while not self.done:
            sleep(0.2)
            on_step()
            alive = occupied(self.folder)
            if was_alive and not alive and not self.done:  # Flower takes a minute to notice
                raise self._process_gone()
            was_alive = was_alive or alive
            rows = read_rows(metrics) if metrics.is_file() else []
            for row in rows[seen:]:
                show(progress(row, limits))
            if len(rows) != seen:
                seen, asked_at = len(rows), time.monotonic()  # it is alive: no status request is needed
            elif time.monotonic() - asked_at > STATUS_INTERVAL_S:
                status, _ = self.status()
                asked_at = time.monotonic()
                if status.startswith("finished") and not occupied(self.folder) and not self.done:
                    raise self.end_error(status)
        rows = read_rows(metrics) if metrics.is_file() else []
        for row in rows[max(0, min(seen, len(rows) - 1)) :]:
            show({**progress(row, limits), "share": 1.0 if row is rows[-1] else None})


def progress(row: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl in the form that a progress bar takes."""
    done = {"versions": row["version"], "seconds": row["t"], "tasks": row["client_tasks"]}
    shares = [done[key] / limit for key, limit in limits.items() if limit]
    values = {key: row[key] for key in ("t", "version", "accuracy")}
    return {**values, "tasks": row["client_tasks"], "share": min(1.0, max(shares)) if shares else None}


def prepare(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Create a run folder with its configuration. Raises EnrollError E306 if the folder is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EnrollError(
            "E306", f"{folder} is not empty: choose another with --out, or continue with --resume {folder}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)  # other accounts of this machine must not read devices' updates
    from fedhet.runs.experiment import ON_GRID

    plain = {**resolved, "transport": ON_GRID}
    write_atomic(folder / "config.yaml", run_config.text(plain))


def _ticket(folder: Path) -> dict[str, Any] | None:
    try:
        ticket = json.loads((folder / TICKET).read_text())
    except FileNotFoundError:
        return None
    return {"wanted": 1, "least": 1, **ticket}
