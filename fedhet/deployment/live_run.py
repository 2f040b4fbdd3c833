"""A run on a grid of Flower's own, in real time: under Ray's simulation, on a SuperLink, or inside `flwr run`.

Everything the server hears is journaled, so a ServerApp that was killed goes on where it was when it is started again
with the same folder. In a federation (fedhet/federation) the registry says who may take part at every moment.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from flwr.serverapp import Grid

from fedhet.deployment.notices import Notices
from fedhet.engine.background_tasks import InlineExecutor
from fedhet.engine.background_thread import ThreadExecutor
from fedhet.engine.clock import WallClock
from fedhet.engine.stopping import TooManyFailures
from fedhet.federation.server.membership import Members
from fedhet.federation.server.update_verification import Registered
from fedhet.flower import reply_stream
from fedhet.flower.client_state import CannotWrite
from fedhet.flower.node_directory import NoClients, NodeDirectory
from fedhet.provenance import device_code
from fedhet.runs.experiment import Experiment, Progress
from fedhet.runs.result import Result
from fedhet.runs.session import Session
from fedhet.types import ClientId

WATCH = 3.0
"""Seconds between looks at which nodes are online."""
EXPECTING = 0.5
"""The same while somebody new has not yet said who it is."""
BELIEVED = ("sec_per_step", "max_rank", "memory_bytes", "uplink_bytes_per_s", "downlink_bytes_per_s")
"""Fields of the registry's profile that a schedule is told, where they are known."""
REST, LONGEST_REST = 60.0, 900.0
"""Seconds without work for a device that cannot write: twice as long each time in succession."""
CANNOT_WRITE = f"client error: {CannotWrite.__name__}:"
"""How such a failure begins, as the server hears of it."""
IDLE = 5.0
"""Seconds for which nothing may be in flight before it is told what is waited for."""
NAMED = 8
"""Clients that are named in one message."""
REMIND = 30.0
"""Seconds after which it is told again."""
BACK = 20.0
"""Seconds a server that was started again waits for the clients that have a job."""


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
    """Run on a grid whose nodes declare their client numbers; starts when `wanted` of them have answered, or `least`
    (default: `wanted`) and nobody further does.

    Clients that are not there are left out until they come. After a resume, jobs that were in flight are sent again:
    a client that did one already answers from its disk. `order` is the operator's word on the configuration. Raises
    NoClients if too few nodes answer in time.
    """
    world = experiment.for_devices()
    clock, grid = WallClock(poll), reply_stream.whole_replies(grid)
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
        session.gate.enrolled(members.claims, lambda: [roster.examples(c) for c in members.now() if c in roster])
    crowd = MembershipMonitor(session, nodes, clock, members, Notices(folder))
    if session.started:
        clock.start(session.server.now)
        crowd.find_again(BACK)
    else:
        crowd.gather(wanted, wanted if least is None else least, gather_seconds)
        clock.start(0.0)
        crowd.meet()
    loop.before_instant, loop.before_sends = crowd.look, crowd.expel
    loop.after_error = crowd.rest
    loop.present = nodes.of_client.__contains__
    with ThreadExecutor(InlineExecutor(dict(experiment.method.transforms))) as aside:
        session.server.server_tasks.set_executor(aside)
        result = session.go(dict, dict)
    crowd.note_speeds()
    return result


@dataclass(frozen=True)
class OnGrid:
    """The transport of a ServerApp: the grid that Flower gave it, in real time. Without a grid it only names itself:
    what is submitted is checked before there is one. Arguments are those of `live`."""

    name: ClassVar[str] = "flower"
    grid: Grid | None = None
    wanted: int = 1
    least: int | None = None
    poll: float = 0.2
    members: Members | None = None
    order: str = ""

    def check(self, experiment: Experiment) -> None:
        """Who is there shows when the run begins."""

    def run(self, experiment: Experiment, folder: Path, *, resume: bool, progress: Progress | None) -> Result:
        """Run to the end. Raises ValueError without a grid, and what `live` raises."""
        if self.grid is None:
            raise ValueError("transport=flower runs inside a ServerApp: use `flwr run` or `fedhet submit`")
        return live(
            experiment, folder, self.grid, wanted=self.wanted, least=self.least, poll=self.poll, resume=resume,
            progress=progress, members=self.members, order=self.order,
        )  # fmt: skip


@dataclass
class MembershipMonitor:
    """Tells the server who comes and goes, and the registry how fast they were."""

    session: Session
    nodes: NodeDirectory
    clock: WallClock
    members: Members | None
    bulletin: Notices
    due: float = 0.0
    idle_since: float | None = None
    observed: dict[ClientId, int] = field(default_factory=dict)
    resting: dict[ClientId, float] = field(default_factory=dict)
    _rests: dict[ClientId, tuple[int, int]] = field(default_factory=dict)

    def gather(self, wanted: int, least: int, seconds: float) -> None:
        """Before the start: wait for clients, and say who is waited for and who did not answer. Raises NoClients."""

        def waiting() -> None:
            here = len(self.nodes.present)
            self.bulletin.say(f"{here} clients have answered; the run begins with {least}{self._absent(least)}")

        nap = lambda: self.clock.wait(None)  # noqa: E731
        try:
            self.nodes.gather(wanted, seconds, nap, least=least, waiting=waiting)
        except NoClients as error:
            raise NoClients(f"{error}{self._absent(least)}") from None
        if self.nodes.silent or len(self.nodes.present) + len(self.nodes.incompatible) < wanted:
            text = f"the run begins with {len(self.nodes.present)} clients{self._absent(wanted)}"
            self.bulletin.say(f"{text}; who answers later takes part from then on")

    def _absent(self, wanted: int) -> str:
        """Who did not answer, or is left out. Where fewer than `wanted` are there, those who went offline as well."""
        here, members = set(self.nodes.present), {} if self.members is None else self.members.now()
        away = set(members) - here - set(self.nodes.incompatible) if len(here) < wanted else set()
        mute = [self.name(client) for client in sorted(away | set(self.nodes.silent))]
        more = f" and {len(mute) - NAMED} more" if len(mute) > NAMED else ""
        strange = "".join(f"; {self.name(c)} is left out: {why}" for c, why in sorted(self.nodes.incompatible.items()))
        return (f"; no answer from {', '.join(mute[:NAMED])}{more}" if mute else "") + strange

    def name(self, client: ClientId) -> str:
        """What people call a client."""
        member = self.members.now().get(client) if self.members is not None else None
        return f"client {client}" if member is None else member.name

    def meet(self) -> None:
        """Before the start: who is there, and what they are."""
        server, inputs = self.session.server, self.session.inputs
        for client in sorted(self.nodes.of_client):
            self._introduce(client)
        inputs.exclude(set(server.roster) - set(self.nodes.of_client))
        self._tell_who_is_missing()
        self._tell_who_is_left_out()
        self.due = self.clock.now() + WATCH

    def _tell_who_is_missing(self) -> None:
        """If nodes and fleet are not equally many."""
        server = self.session.server
        here, clients = server.taking_part, len(server.roster)
        if here < clients:
            whose = "" if self.members is not None else (
                f"; data that is divided among {clients} is used in part: fleet.clients={here} divides it among these"
            )  # fmt: skip
            self.bulletin.say(f"{here} of fleet.clients={clients} clients are here; the others count nowhere{whose}")
        beyond = sorted(set(self.nodes.of_client) - set(server.roster))
        if beyond:
            self.bulletin.say(
                f"{len(beyond)} nodes get no work: their numbers ({', '.join(map(str, beyond[:8]))}) are not below "
                f"fleet.clients={clients}"
            )

    def find_again(self, seconds: float) -> None:
        """After a restart: send jobs again to those who are there; those of the others have failed."""
        server, inputs = self.session.server, self.session.inputs
        end = time.monotonic() + seconds
        self.nodes.refresh(at_once=True)
        while self._missing() and time.monotonic() < end:
            self.clock.wait(None)
            self.nodes.refresh(at_once=True)
        gone = self._missing()
        self.expel()
        for job in sorted(server.inflight.values(), key=lambda job: job.id):
            if job.client in gone:
                inputs.failed(job.id, "restart", self.clock.now())
            else:
                self.session.loop.resend(job)
        for client in server.roster:
            if client not in self.nodes.of_client and client not in server.excluded:
                inputs.left(client, self.clock.now())
        for client in sorted(set(self.nodes.of_client) & server.excluded):
            self._welcome(client)
        self.due = self.clock.now()

    def look(self) -> None:
        """Before every instant: who may not take part any more; now and then, who came and who went."""
        self.expel()
        self._tell_who_refuses()
        self._tell_what_is_waited_for()
        if self.clock.now() < self.due:
            return
        came, gone = self.nodes.refresh()
        self.expel()
        for client in gone:
            self.session.loop.refused.pop(client, None)  # when it comes back its owner may have allowed more
            if client not in self.session.server.excluded:
                self.session.inputs.left(client, self.clock.now())
        rested = [client for client, until in self.resting.items() if until <= self.clock.now()]
        for client in rested:
            del self.resting[client]
        for client in sorted({*came, *rested}):
            self._welcome(client)
        self._tell_who_is_left_out()
        for client, (asked, got) in sorted(self.session.gate.bounded.items()):
            self.bulletin.repeat(f"weight of {client}", self._why_bounded(client, asked, got), math.inf)
        self.due = self.clock.now() + (EXPECTING if self.nodes.expecting else WATCH)
        self.session.record.sync()
        self.note_speeds()

    def _tell_who_is_left_out(self) -> None:
        for client, why in sorted(self.nodes.incompatible.items()):
            self.bulletin.repeat(f"code of {client}", f"{self.name(client)} is left out of this run: {why}", math.inf)

    def _why_bounded(self, client: ClientId, asked: float, got: float) -> str:
        text = f"{self.name(client)} counts as {got:g} examples, not as the {asked:g} that it says it has"
        member = self.members.now().get(client) if self.members is not None else None
        if member is not None and got == member.examples:
            return f"{text}: more were not approved (fedhet clients weight {self.name(client)})"
        return f"{text}: gate.weight_medians={self.session.gate.weight_medians:g} times the median client"

    def _tell_who_refuses(self) -> None:
        """Say which clients do not do what the configuration asks of them. Raises TooManyFailures if nobody here
        does."""
        refused, here = self.session.loop.refused, set(self.nodes.of_client)
        told = {client: f"{self.name(client)} refuses this run: {why}" for client, why in sorted(refused.items())}
        for client, text in told.items():
            self.bulletin.repeat(f"refusal of {client}", text, math.inf)
        if here and here <= set(refused) and not self.session.server.inflight:
            more = f"; and {len(here) - 1} more" if len(here) > 1 else ""
            raise TooManyFailures(f"every client refuses this run: {told[min(here)]}{more}")

    def _tell_what_is_waited_for(self) -> None:
        """If nothing is in flight and no timer is due: how many clients a round needs, and how many there are."""
        server, now = self.session.server, self.clock.now()
        if server.inflight or server.server_tasks.open or (server.next_timer or math.inf) < now + REMIND:
            self.idle_since = None
            return
        self.idle_since = now if self.idle_since is None else self.idle_since
        if now < self.idle_since + IDLE:
            return
        here = len(set(self.nodes.of_client) - server.excluded)
        needs = getattr(self.session.experiment.method.schedule, "min_updates", 1)
        opens = f"a round opens with {needs} clients" if here < needs else "no client is given work"
        are = "1 is online" if here == 1 else f"{here} are online"
        self.bulletin.repeat("waiting", f"{opens}; {are}{self._absent(0)}", REMIND)

    def rest(self, client: ClientId, reason: str) -> None:
        """A device that cannot write is told to the operator, and given no work for a while: longer each time."""
        if not reason.startswith(CANNOT_WRITE):
            return
        finished = self.session.server.observed(client).finished
        before, times = self._rests.get(client, (finished, 0))
        times = times + 1 if before == finished else 1
        self._rests[client] = finished, times
        seconds = min(LONGEST_REST, REST * 2 ** (times - 1))
        self.resting[client] = self.clock.now() + seconds
        why = reason.removeprefix(CANNOT_WRITE).strip()
        self.bulletin.say(f"{self.name(client)} cannot write to its disk ({why}); it is asked again in {seconds:g} s")
        if client not in self.session.server.excluded:
            self.session.inputs.left(client, self.clock.now())

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
        if here and client not in self.resting and client not in self.session.gate.suspended:
            self._introduce(client)
            self.session.inputs.joined(client, self.clock.now())

    def _introduce(self, client: ClientId) -> None:
        """Tell the schedule what is known: observed before measured, measured before what the configuration assumes."""
        roster = self.session.server.roster
        if client not in roster:
            return
        fields = self.nodes.declared_profile(client)
        member = self.members.now().get(client) if self.members is not None else None
        if member is not None:
            fields.pop("num_examples", None)  # a number that nobody approved
        if member is not None and member.examples:
            fields["num_examples"] = member.examples
        if member is not None and member.profile is not None:
            known = {name: getattr(member.profile, name) for name in BELIEVED}
            fields |= {name: value for name, value in known.items() if value and math.isfinite(value)}
        fields = {name: value for name, value in fields.items() if value != getattr(roster[client], name)}
        if fields:
            self.session.inputs.profile_update(client, fields)

    def expel(self) -> None:
        """Whoever the registry does not let take part loses its place and its undecided updates at once.

        Asked before answers are judged and again before work is given out: a registry may change in between.
        """
        if self.members is None:
            return
        server, active = self.session.server, self.members.now()
        prepared = [chore.update.job for chore in server.server_tasks.open.values()]
        jobs = [*server.buffer.values(), *server.inflight.values(), *prepared]
        concerned = {job.client for job in jobs} | set(self.nodes.of_client)
        for client in sorted(concerned - set(active)):
            self.nodes.of_client.pop(client, None)
            if client in server.roster:
                self.session.inputs.expel(client, self.members.state(client), self.clock.now())
                self.session.gate.clear_violations(
                    client
                )  # its fate is the registry's now: resumed there, it starts anew

    def _missing(self) -> set[ClientId]:
        return {job.client for job in self.session.server.inflight.values()} - set(self.nodes.of_client)
