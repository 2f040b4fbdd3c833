"""A run on a grid of Flower's own, in real time: under Ray's simulation, on a SuperLink, or inside `flwr run`.

Every answer is journaled, so a ServerApp that was killed continues when it is started again with the same folder. In a
federation (fedhet/federation) only clients that are active in the registry take part, checked at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flwr.serverapp import Grid

from fedhet.deployment.membership_monitor import MembershipMonitor
from fedhet.deployment.notices import Notices
from fedhet.engine.background_tasks import InlineExecutor
from fedhet.engine.background_thread import ThreadExecutor
from fedhet.engine.clock import WallClock
from fedhet.federation.server.membership import Members
from fedhet.federation.server.update_verification import Registered
from fedhet.flower import reply_stream
from fedhet.flower.node_directory import NodeDirectory
from fedhet.provenance import device_code
from fedhet.runs.experiment import Experiment, Progress
from fedhet.runs.result import Result
from fedhet.runs.session import Session

RECONNECT_S = 20.0
"""Seconds that a restarted server waits for the clients that have a job."""


def live(
    experiment: Experiment,
    folder: Path,
    grid: Grid,
    *,
    wanted: int,
    least: int | None = None,
    poll: float,
    resume: bool = False,
    progress: Progress | None = None,
    gather_seconds: float = 180.0,
    members: Members | None = None,
    order: str = "",
) -> Result:
    """Run on a grid whose nodes declare their client numbers. It starts when `wanted` of them have answered, or after
    `gather_seconds` with at least `least` (default: `wanted`). `poll` is the interval of the wall clock, in seconds.

    Absent clients are excluded until they appear. After a resume, jobs in flight are sent again: a client that has done
    one answers from its disk. `order` is the signed order (signed_orders.py) that is sent with jobs. Raises NoClients
    if too few nodes answer in time."""
    world = experiment.for_devices()
    clock, grid = WallClock(poll), reply_stream.complete_replies(grid)
    nodes = NodeDirectory(
        grid,
        clock,
        None if members is None else members.nodes,
        device_code.hashes(device_code.modules(world), running=False),
    )
    session = Session(
        experiment, folder, resume=resume, progress=progress, code=device_code.digest(world, running=False),
        sealed=True, journaled=True,
    )  # fmt: skip
    loop = session.join(grid, clock, lambda client: nodes.of_client[client], seal=True, world=world)
    loop.order = order
    if members is not None:
        session.gate.verify_signature = Registered(members, loop.run_id)
        roster = session.server.roster
        session.gate.enrolled(
            members.declared_examples, lambda: [roster.examples(c) for c in members.now() if c in roster]
        )
    monitor = MembershipMonitor(session, nodes, clock, members, Notices(folder))
    if session.started:
        clock.start(session.server.now)
        monitor.reconnect(RECONNECT_S)
    else:
        monitor.gather(wanted, wanted if least is None else least, gather_seconds)
        clock.start(0.0)
        monitor.introduce_present()
    loop.before_instant, loop.before_sends = monitor.step, monitor.expel
    loop.after_error = monitor.pause_unwritable
    loop.present = nodes.of_client.__contains__
    with ThreadExecutor(InlineExecutor(dict(experiment.method.transforms))) as executor:
        session.server.server_tasks.set_executor(executor)
        result = session.go(dict, dict)
    monitor.note_speeds()
    return result


@dataclass(frozen=True)
class OnGrid:
    """The transport of a ServerApp: the grid that Flower passes to it, in real time. Arguments are those of `live`.

    Without a grid it can be named in a configuration and checked, but not run.
    """

    name: ClassVar[str] = "flower"
    grid: Grid | None = None
    wanted: int = 1
    least: int | None = None
    poll: float = 0.2
    members: Members | None = None
    order: str = ""

    def check(self, experiment: Experiment) -> None:
        """Nothing to check: the nodes are known when the run begins."""

    def run(self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None) -> Result:
        """Run to the end. Raises ValueError without a grid, and what `live` raises."""
        if self.grid is None:
            raise ValueError("transport=flower runs inside a ServerApp: use `flwr run` or `fedhet submit`")
        return live(
            experiment, folder, self.grid, wanted=self.wanted, least=self.least, poll=self.poll, resume=resume,
            progress=progress, members=self.members, order=self.order,
        )  # fmt: skip
