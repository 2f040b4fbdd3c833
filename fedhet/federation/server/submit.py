"""A composed method on the live federation: submitted through the SuperLink's loopback, followed in its run folder.

The ServerApp writes the run folder itself; Flower is asked only whether the run still goes on, and for its last words.
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
from fedhet.federation.server.superlink import NAME, SuperLink
from fedhet.flower import app_bundle
from fedhet.runs import run_config, run_ending
from fedhet.runs.event_log import read_rows, write_atomic
from fedhet.runs.run_ending import RunEnding
from fedhet.system.file_lock import occupied

T = TypeVar("T")
TICKET = "submitted.json"
"""In a run folder: which run of which federation it is."""
RUNS = "runs"
"""In a federation's folder: a file for each run that was submitted and is not known to be over, with its folder."""
AWAY_S = 120.0
"""Seconds for which a SuperLink may be away while a run is followed."""
LAST_WORDS_S = 5.0
"""Seconds within which Flower knows that a run was stopped by other means than ours."""
AGAIN_S = 180.0
"""Seconds for which a server may take to start a killed run again."""
LOOK_S = 5.0
"""Seconds between questions whether the run still goes on."""
WORDS = 1500
"""Characters of a failed run's log that are shown."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A run of a federation and its folder. It begins when `wanted` clients have answered, or no further one than
    `least` does."""

    link: SuperLink
    folder: Path
    run_id: int
    wanted: int = 1
    least: int = 1

    @classmethod
    def begin(cls, link: SuperLink, folder: Path, wanted: int, least: int) -> Submission:
        """Start the run whose config.yaml lies in the folder; if there is a checkpoint it goes on from there."""
        run_ending.clear(folder)
        given = {"config": str(folder / "config.yaml"), "folder": str(folder)}
        text = " ".join(f"{k}={json.dumps(v)}" for k, v in given.items()) + f" wanted={wanted} least={least}"
        with tempfile.TemporaryDirectory(prefix="fedhet-submit-") as beside:
            app = Path(beside) / "fedhet-run"
            app.mkdir()
            (app / "pyproject.toml").write_text(app_bundle.pyproject(poll=0.2))
            answer = link.flwr("run", str(app), NAME, "--run-config", text)
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
            raise EnrollError("E306", f"{folder} holds no submitted run: it has no {TICKET}")
        return cls._ticketed(SuperLink.served(Path(ticket["home"])), folder, ticket)

    @classmethod
    def _ticketed(cls, link: SuperLink, folder: Path, ticket: Mapping[str, Any]) -> Submission:
        return cls(link, folder, *(int(ticket[key]) for key in ("run_id", "wanted", "least")))

    @classmethod
    def entered(cls, link: SuperLink) -> Iterator[tuple[Path, Submission | None]]:
        """What says that a run was submitted and is not known to be over, and the run; None if its folder is gone."""
        for entry in sorted((link.folder.parent / RUNS).glob("*.run")):
            folder = Path(entry.read_text())
            ticket = _ticket(folder)
            yield entry, None if ticket is None else cls._ticketed(link, folder, ticket)

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return (self.folder / "result.json").is_file()

    def status(self) -> tuple[str, str]:
        """Flower's word for it (pending, starting, running, or finished:... with how) and what it says to that."""
        return self._patiently(self.asked)

    def asked(self) -> tuple[str, str]:
        """The same, without patience. Raises EnrollError E308, or E315 for a run that this SuperLink never had."""
        runs = self.link.flwr("list", NAME, "--run-id", str(self.run_id)).get("runs", [])
        if not runs:
            raise EnrollError("E315", f"the SuperLink knows no run {self.run_id}")
        return str(runs[0]["status"]), str(runs[0].get("status-details", ""))

    @property
    def ended(self) -> RunEnding | None:
        """How the run itself says that it ended without a result; None if it does not."""
        return run_ending.read(self.folder)

    def again(self) -> Submission | None:
        """The run as the server has started it anew, from its journal; None if it has not within a time, or gave up."""
        end = time.monotonic() + AGAIN_S
        while time.monotonic() < end and self.ended is None:
            ticket = _ticket(self.folder)
            if self.done or (ticket is not None and int(ticket["run_id"]) != self.run_id):
                return replace(self, run_id=int(ticket["run_id"]) if ticket else self.run_id)
            time.sleep(0.5)
        return None

    def _patiently(self, call: Callable[[], T]) -> T:
        """A call that outlasts a SuperLink which died and is being started again. Raises EnrollError E308."""
        end, tries = time.monotonic() + AWAY_S, 3
        while True:
            try:
                return call()
            except EnrollError as error:
                if error.code != "E308" or time.monotonic() > end:
                    raise
                if self.link.listens():  # it is there, so it is something else; or it came back this moment
                    tries -= 1
                    if not tries:
                        raise
            time.sleep(1.0)

    def stop(self) -> None:
        """End the run; its folder keeps the last checkpoint."""
        RunEnding(run_ending.STOPPED, "by the operator").write(self.folder)  # first, or its end would look like a kill
        try:
            status, _ = self.status()
            if not status.startswith("finished"):  # else it was killed, and is not started again now
                self.link.flwr("stop", str(self.run_id), NAME)
        except EnrollError:
            run_ending.clear(self.folder)
            raise

    def last_words(self) -> str:
        """The end of the ServerApp's log."""
        return self.link.text("log", str(self.run_id), NAME, "--show")[-WORDS:].strip()

    def _gone(self) -> EnrollError:
        """Of a process that is gone: what it wrote last. What wrote nothing was killed, unless Flower was told to."""
        status, end = "", time.monotonic() + LAST_WORDS_S
        while self.ended is None and not self.done and "stopped" not in status and time.monotonic() < end:
            time.sleep(0.5)
            if self.link.listens():
                status, _ = self.status()
        return self.over(status)

    def over(self, status: str = "") -> EnrollError:
        """Why a run without a result does not go on; "killed" in its `data` if nothing says that it should not."""
        ended = self.ended
        if "stopped" in status or (ended is not None and ended.how == run_ending.STOPPED):
            return EnrollError("E315", "it is stopped")
        if ended is None:
            return EnrollError("E314", status or "its process is gone", log=self.last_words(), killed=True)
        return EnrollError("E314", ended.why, log=ended.trace or self.last_words(), killed=False)

    def follow(
        self,
        show: Callable[[Mapping[str, Any]], None],
        most: Mapping[str, Any],
        nap: Callable[[float], None] = time.sleep,
        hear: Callable[[], None] = lambda: None,
    ) -> None:
        """Tell `show` of every evaluation until the result is there. `most` holds the limits of the run; `hear` is
        called again and again, for what else the run has to tell.

        Raises EnrollError E315 if the run was stopped, E314 if it ends without a result otherwise: `data` has the end
        of its log, and under "killed" whether its process just vanished, for the server then starts it again.
        """
        looked, seen, metrics, lived = time.monotonic(), 0, self.folder / "metrics.jsonl", False
        while not self.done:
            nap(0.2)
            hear()
            here = occupied(self.folder)
            if lived and not here and not self.done:  # Flower notices after a minute only
                raise self._gone()
            lived = lived or here
            rows = read_rows(metrics) if metrics.is_file() else []
            for row in rows[seen:]:
                show(progress(row, most))
            if len(rows) != seen:
                seen, looked = len(rows), time.monotonic()  # it lives, nobody need be asked
            elif time.monotonic() - looked > LOOK_S:
                status, _ = self.status()
                looked = time.monotonic()
                if status.startswith("finished") and not occupied(self.folder) and not self.done:
                    raise self.over(status)
        rows = read_rows(metrics) if metrics.is_file() else []
        for row in rows[max(0, min(seen, len(rows) - 1)) :]:
            show({**progress(row, most), "share": 1.0 if row is rows[-1] else None})


def progress(row: Mapping[str, Any], most: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl as a progress bar takes it."""
    done = {"versions": row["version"], "seconds": row["t"], "tasks": row["client_tasks"]}
    shares = [done[key] / limit for key, limit in most.items() if limit]
    told = {key: row[key] for key in ("t", "version", "accuracy")}
    return {**told, "tasks": row["client_tasks"], "share": min(1.0, max(shares)) if shares else None}


def prepare(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Make a run folder with its configuration. Raises EnrollError E306 if it holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EnrollError("E306", f"{folder} is not empty: choose another with --out, or go on with --resume {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)  # what devices sent is nobody else's on this machine
    from fedhet.runs.experiment import ON_GRID

    plain = {**resolved, "transport": ON_GRID}
    write_atomic(folder / "config.yaml", run_config.text(plain))


def _ticket(folder: Path) -> dict[str, Any] | None:
    try:
        ticket = json.loads((folder / TICKET).read_text())
    except FileNotFoundError:
        return None
    return {"wanted": 1, "least": 1, **ticket}
