"""Notices of a live run about its clients: who has not answered, who is left out, who refuses, who is waited for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedhet.deployment.notices import Notices
from fedhet.engine.clock import WallClock
from fedhet.engine.stopping import TooManyFailures
from fedhet.federation.server.membership import Members
from fedhet.flower.node_directory import NodeDirectory
from fedhet.runs.session import Session
from fedhet.types import ClientId

IDLE_NOTICE_S = 5.0
"""Seconds without a job in flight after which a notice says what the run waits for."""

MAX_NAMES = 8
"""Clients that one notice names, at most."""

REPEAT_NOTICE_S = 30.0
"""Seconds after which that notice is repeated."""


@dataclass
class MembershipNotices:
    """Writes notices about the clients of a run."""

    session: Session
    nodes: NodeDirectory
    clock: WallClock
    members: Members | None
    notices: Notices
    idle_since: float | None = None

    def missing_clients(self, wanted: int) -> str:
        """Text on clients that have not answered or are left out; if fewer than `wanted` are online, also on those
        offline. "" if there are none."""
        here, members = set(self.nodes.present), {} if self.members is None else self.members.now()
        away = set(members) - here - set(self.nodes.incompatible) if len(here) < wanted else set()
        mute = [self.name(client) for client in sorted(away | set(self.nodes.silent))]
        more = f" and {len(mute) - MAX_NAMES} more" if len(mute) > MAX_NAMES else ""
        strange = "".join(f"; {self.name(c)} is left out: {why}" for c, why in sorted(self.nodes.incompatible.items()))
        return (f"; no answer from {', '.join(mute[:MAX_NAMES])}{more}" if mute else "") + strange

    def name(self, client: ClientId) -> str:
        """A client's name in the registry, else "client" and its number."""
        member = self.members.now().get(client) if self.members is not None else None
        return f"client {client}" if member is None else member.name

    def say_fleet_size(self) -> None:
        """Notices if the number of nodes differs from `fleet.clients`."""
        server = self.session.server
        here, clients = server.taking_part, len(server.roster)
        if here < clients:
            whose = "" if self.members is not None else (
                f"; data that is divided among {clients} is used in part: fleet.clients={here} divides it among these"
            )  # fmt: skip
            self.notices.say(f"{here} of fleet.clients={clients} clients are here; the others count nowhere{whose}")
        beyond = sorted(set(self.nodes.of_client) - set(server.roster))
        if beyond:
            self.notices.say(
                f"{len(beyond)} nodes get no work: their numbers ({', '.join(map(str, beyond[:8]))}) are not below "
                f"fleet.clients={clients}"
            )

    def say_incompatible(self) -> None:
        for client, why in sorted(self.nodes.incompatible.items()):
            self.notices.repeat(f"code of {client}", f"{self.name(client)} is left out of this run: {why}", math.inf)

    def bounded_weight(self, client: ClientId, asked: float, got: float) -> str:
        text = f"{self.name(client)} counts as {got:g} examples, not as the {asked:g} that it says it has"
        member = self.members.now().get(client) if self.members is not None else None
        if member is not None and got == member.examples:
            return f"{text}: more were not approved (fedhet clients weight {self.name(client)})"
        return f"{text}: gate.weight_medians={self.session.gate.weight_medians:g} times the median client"

    def say_refusals(self) -> None:
        """Notices of clients that refuse to build the configuration. Raises TooManyFailures if all that are online
        do."""
        refused, here = self.session.loop.refused, set(self.nodes.of_client)
        told = {client: f"{self.name(client)} refuses this run: {why}" for client, why in sorted(refused.items())}
        for client, text in told.items():
            self.notices.repeat(f"refusal of {client}", text, math.inf)
        if here and here <= set(refused) and not self.session.server.inflight:
            more = f"; and {len(here) - 1} more" if len(here) > 1 else ""
            raise TooManyFailures(f"every client refuses this run: {told[min(here)]}{more}")

    def say_idle(self) -> None:
        """A notice if no job is in flight and no timer is due: how many clients a round needs, and how many are
        online."""
        server, now = self.session.server, self.clock.now()
        if server.inflight or server.server_tasks.open or (server.next_timer or math.inf) < now + REPEAT_NOTICE_S:
            self.idle_since = None
            return
        self.idle_since = now if self.idle_since is None else self.idle_since
        if now < self.idle_since + IDLE_NOTICE_S:
            return
        here = len(set(self.nodes.of_client) - server.excluded)
        needs = getattr(self.session.experiment.method.schedule, "min_updates", 1)
        opens = f"a round opens with {needs} clients" if here < needs else "no client is given work"
        are = "1 is online" if here == 1 else f"{here} are online"
        self.notices.repeat("waiting", f"{opens}; {are}{self.missing_clients(0)}", REPEAT_NOTICE_S)
