"""A run on a grid of Flower's own, in real time: under Ray's simulation, on a SuperLink, or inside `flwr run`.

Everything the server hears is journaled, so a ServerApp that was killed goes on where it was when it is started again
with the same folder. In a federation (fedhet/enroll) the registry says who may take part at every moment.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid
from omegaconf import OmegaConf

from fedhet import config, ending, flower_replies, origin, record
from fedhet.aside import Aside
from fedhet.chores import Own
from fedhet.clock import WallClock
from fedhet.enroll.members import Members
from fedhet.enroll.vouch import Registered
from fedhet.experiment import Experiment, Progress
from fedhet.journal import alone
from fedhet.nodes import Nodes
from fedhet.result import Result
from fedhet.session import Session
from fedhet.types import ClientId

WATCH = 3.0
"""Seconds between looks at which nodes are online."""
EXPECTING = 0.5
"""The same while somebody new has not yet said who it is."""
BELIEVED = ("sec_per_step", "max_rank", "memory_bytes", "uplink_bytes_per_s", "downlink_bytes_per_s", "num_examples")
"""Fields of the registry's profile that a schedule is told, where they are known."""
BACK = 20.0
"""Seconds a server that was started again waits for the clients that have a job."""


def live(
    experiment: Experiment,
    folder: Path,
    grid: Grid,
    *,
    wanted: int,
    poll: float,
    resume: bool = False,
    progress: Progress | None = None,
    gather_seconds: float = 180.0,
    members: Members | None = None,
) -> Result:
    """Run on a grid whose nodes declare their client numbers; starts when `wanted` of them are known.

    Clients that are not there are left out until they come. After a resume, jobs that were in flight are sent again:
    a client that did one already answers from its disk. Raises NoClients if too few nodes answer in time.
    """
    clock, grid = WallClock(poll), flower_replies.whole(grid)
    nodes = Nodes(grid, clock, None if members is None else members.nodes)
    session = Session(
        experiment, folder, resume=resume, progress=progress, code=origin.fingerprint(), sealed=True, journaled=True
    )
    drive = session.join(grid, clock, lambda client: nodes.of_client[client], seal=True, world=experiment.for_devices())
    if members is not None:
        session.gate.vouch = Registered(members, drive.run_id)
    crowd = _Crowd(session, nodes, clock, members)
    if session.started:
        clock.start(session.server.now)
        crowd.find_again(BACK)
    else:
        nodes.gather(wanted, gather_seconds, lambda: clock.wait(None))
        clock.start(0.0)
        crowd.meet()
    drive.before_instant, drive.before_sends = crowd.look, crowd.expel
    drive.present = nodes.of_client.__contains__
    with Aside(Own(dict(experiment.method.layers))) as aside:
        session.server.chores.employ(aside)
        result = session.go(dict, dict)
    crowd.note_speeds()
    return result


@dataclass
class _Crowd:
    """Tells the server who comes and goes, and the registry how fast they were."""

    session: Session
    nodes: Nodes
    clock: WallClock
    members: Members | None
    due: float = 0.0
    observed: dict[ClientId, int] = field(default_factory=dict)

    def meet(self) -> None:
        """Before the start: who is there, and what they are."""
        server, heard = self.session.server, self.session.heard
        for client in sorted(self.nodes.of_client):
            self._introduce(client)
        heard.bar(set(server.roster) - set(self.nodes.of_client))
        self.due = self.clock.now() + WATCH

    def find_again(self, seconds: float) -> None:
        """After a restart: send jobs again to those who are there; those of the others have failed."""
        server, heard = self.session.server, self.session.heard
        end = time.monotonic() + seconds
        self.nodes.refresh()
        while self._missing() and time.monotonic() < end:
            self.clock.wait(None)
            self.nodes.refresh()
        gone = self._missing()
        self.expel()
        for job in sorted(server.inflight.values(), key=lambda job: job.id):
            if job.client in gone:
                heard.failed(job.id, "restart", self.clock.now())
            else:
                self.session.drive.resend(job)
        for client in server.roster:
            if client not in self.nodes.of_client and client not in server.barred:
                heard.left(client, self.clock.now())
        for client in sorted(set(self.nodes.of_client) & server.barred):
            self._welcome(client)
        self.due = self.clock.now()

    def look(self) -> None:
        """Before every instant: who may not take part any more; now and then, who came and who went."""
        self.expel()
        if self.clock.now() < self.due:
            return
        came, gone = self.nodes.refresh()
        self.expel()
        for client in gone:
            if client not in self.session.server.barred:
                self.session.heard.left(client, self.clock.now())
        for client in came:
            self._welcome(client)
        self.due = self.clock.now() + (EXPECTING if self.nodes.expecting else WATCH)
        self.session.record.sync()
        self.note_speeds()

    def note_speeds(self) -> None:
        """What was observed, for the registry: the next run, and `fedhet clients list`, know it from there."""
        if self.members is None:
            return
        for client in self.members.now():
            seen = self.session.server.observed(client)
            if seen.seconds_per_step and seen.finished != self.observed.get(client, 0):
                self.observed[client] = seen.finished
                self.members.observe(client, seen.seconds_per_step)

    def _welcome(self, client: ClientId) -> None:
        """Somebody came; unless it was shut out again since then, in the registry or by the gate."""
        here = client in self.nodes.of_client and client in self.session.server.roster
        if here and client not in self.session.gate.suspended:
            self._introduce(client)
            self.session.heard.joined(client, self.clock.now())

    def _introduce(self, client: ClientId) -> None:
        """Tell the schedule what is known: observed before measured, measured before what the configuration assumes."""
        roster = self.session.server.roster
        if client not in roster:
            return
        fields = self.nodes.told(client)
        member = self.members.now().get(client) if self.members is not None else None
        if member is not None and member.profile is not None:
            known = {name: getattr(member.profile, name) for name in BELIEVED}
            fields |= {name: value for name, value in known.items() if value and math.isfinite(value)}
        fields = {name: value for name, value in fields.items() if value != getattr(roster[client], name)}
        if fields:
            self.session.heard.told(client, fields)

    def expel(self) -> None:
        """Whoever the registry does not let take part loses its place and its undecided updates at once.

        Asked before answers are judged and again before work is given out: a registry may change in between.
        """
        if self.members is None:
            return
        server, active = self.session.server, self.members.now()
        pondered = [chore.update.job for chore in server.chores.open.values()]
        jobs = [*server.buffer.values(), *server.inflight.values(), *pondered]
        concerned = {job.client for job in jobs} | set(self.nodes.of_client)
        for client in sorted(concerned - set(active)):
            self.nodes.of_client.pop(client, None)
            if client in server.roster:
                self.session.heard.expel(client, self.members.state(client), self.clock.now())
                self.session.gate.pardon(client)  # its fate is the registry's now: resumed there, it starts anew

    def _missing(self) -> set[ClientId]:
        return {job.client for job in self.session.server.inflight.values()} - set(self.nodes.of_client)


def serve(grid: Grid, context: Context) -> None:
    """What our ServerApp does. Run configuration: `config` names a resolved YAML file, else `overrides` are composed;
    `folder` is where the run folder goes (default: runs/flower-<run id>)."""
    given: dict[str, Any] = dict(context.run_config)
    folder = Path(str(given.get("folder") or f"runs/flower-{context.run_id}"))
    with alone(folder), ending.recorded(folder, flower_replies.lost):
        result = _carried_out(grid, folder, given)
    print(json.dumps({key: result.row[key] for key in ("strategy", "versions", "accuracy", "weights_sha256")}))
    print(result.path.resolve())


def _carried_out(grid: Grid, folder: Path, given: Mapping[str, Any]) -> Result:
    if given.get("config"):
        resolved: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(str(given["config"])), resolve=True)  # type: ignore[assignment]
    else:
        resolved = config.resolved(config.compose(shlex.split(str(given.get("overrides", "")))))
    experiment = Experiment.of({**resolved, "transport": {**resolved["transport"], "name": "flower"}})
    if not (folder / "config.yaml").exists():
        record.write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
    wanted = int(given.get("wanted") or 0) or min(len(experiment.clients), max(1, len(list(grid.get_node_ids()))))
    poll = float(given.get("poll") or 0.2)
    members = Members.here()
    with contextlib.closing(members) if members is not None else contextlib.nullcontext():
        return live(experiment, folder, grid, wanted=wanted, poll=poll, resume=True, progress=_Lines(), members=members)


class _Lines:
    """One line of progress per version: a ServerApp's output is a log."""

    def __init__(self) -> None:
        self._version = -1

    def __call__(self, row: Mapping[str, Any]) -> None:
        if row["version"] == self._version:
            return
        self._version = row["version"]
        accuracy = "" if row["accuracy"] is None else f"  accuracy {row['accuracy']:.3f}"
        print(f"t {row['t']:.1f} s  version {row['version']}  tasks {row['tasks']}{accuracy}", flush=True)
