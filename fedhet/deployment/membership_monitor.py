"""Membership of a live run: clients that join, go offline, are revoked or cannot write, and their observed speeds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from fedhet.deployment.membership_notices import MembershipNotices
from fedhet.flower.client_state import CannotWrite
from fedhet.flower.node_directory import NoClients
from fedhet.types import ClientId

WATCH_INTERVAL_S = 3.0
"""Seconds between refreshes of the online nodes."""
NEW_NODE_INTERVAL_S = 0.5
"""Seconds between refreshes while a new node has not declared its client number yet."""
PROFILE_FIELDS = ("sec_per_step", "max_rank", "memory_bytes", "uplink_bytes_per_s", "downlink_bytes_per_s")
"""Fields of a registry profile that a schedule gets, where they are known."""
CANNOT_WRITE = f"client error: {CannotWrite.__name__}:"
"""Prefix of a client's error that says that its disk cannot be written."""
FIRST_PAUSE_S, MAX_PAUSE_S = 60.0, 900.0
"""Seconds without jobs for a client that cannot write: the first pause, doubled at each failure in succession, and the
longest one."""


@dataclass
class MembershipMonitor(MembershipNotices):
    """Passes joins and departures to the engine, and observed speeds to the registry.

    `due`: when the nodes are refreshed next, in seconds of `clock`. `observed`: finished jobs of a client at its last
    recorded speed. `paused`: when a client that cannot write gets jobs again.
    """

    due: float = 0.0
    observed: dict[ClientId, int] = field(default_factory=dict)
    paused: dict[ClientId, float] = field(default_factory=dict)
    _pauses: dict[ClientId, tuple[int, int]] = field(default_factory=dict)

    def gather(self, wanted: int, least: int, seconds: float) -> None:
        """Before the start, wait up to `seconds` for `wanted` clients, with notices of those missing. Raises NoClients
        if fewer than `least` answer."""

        def waiting() -> None:
            here = len(self.nodes.present)
            self.notices.say(f"{here} clients have answered; the run begins with {least}{self.missing_clients(least)}")

        nap = lambda: self.clock.wait(None)  # noqa: E731
        try:
            self.nodes.gather(wanted, seconds, nap, least=least, waiting=waiting)
        except NoClients as error:
            raise NoClients(f"{error}{self.missing_clients(least)}") from None
        if self.nodes.silent or len(self.nodes.present) + len(self.nodes.incompatible) < wanted:
            text = f"the run begins with {len(self.nodes.present)} clients{self.missing_clients(wanted)}"
            self.notices.say(f"{text}; who answers later takes part from then on")

    def introduce_present(self) -> None:
        """Before the start, pass the profiles of the present clients to the schedule, and exclude the others."""
        server, inputs = self.session.server, self.session.inputs
        for client in sorted(self.nodes.of_client):
            self._introduce(client)
        inputs.exclude(set(server.roster) - set(self.nodes.of_client))
        self.say_fleet_size()
        self.say_incompatible()
        self.due = self.clock.now() + WATCH_INTERVAL_S

    def reconnect(self, seconds: float) -> None:
        """After a restart, wait up to `seconds` for the clients with jobs in flight; resend the jobs of those that are
        back, and fail the others."""
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
            self._join(client)
        self.due = self.clock.now()

    def step(self) -> None:
        """Called before every instant: remove revoked clients, and every `WATCH_INTERVAL_S` refresh the nodes. Raises
        TooManyFailures if every client refuses the run."""
        self.expel()
        self.say_refusals()
        self.say_idle()
        if self.clock.now() < self.due:
            return
        came, gone = self.nodes.refresh()
        self.expel()
        for client in gone:
            self.session.loop.refused.pop(client, None)  # its owner may have allowed more when it comes back
            if client not in self.session.server.excluded:
                self.session.inputs.left(client, self.clock.now())
        due_again = [client for client, until in self.paused.items() if until <= self.clock.now()]
        for client in due_again:
            del self.paused[client]
        for client in sorted({*came, *due_again}):
            self._join(client)
        self.say_incompatible()
        for client, (asked, got) in sorted(self.session.gate.bounded.items()):
            self.notices.repeat(f"weight of {client}", self.bounded_weight(client, asked, got), math.inf)
        self.due = self.clock.now() + (NEW_NODE_INTERVAL_S if self.nodes.expecting else WATCH_INTERVAL_S)
        self.session.record.sync()
        self.note_speeds()

    def pause_unwritable(self, client: ClientId, reason: str) -> None:
        """Give no jobs to a client that cannot write to its disk, for a time that doubles at each failure in
        succession, with a notice. Other failures are ignored."""
        if not reason.startswith(CANNOT_WRITE):
            return
        finished = self.session.server.observed(client).finished
        before, times = self._pauses.get(client, (finished, 0))
        times = times + 1 if before == finished else 1
        self._pauses[client] = finished, times
        seconds = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (times - 1))
        self.paused[client] = self.clock.now() + seconds
        why = reason.removeprefix(CANNOT_WRITE).strip()
        self.notices.say(f"{self.name(client)} cannot write to its disk ({why}); it is asked again in {seconds:g} s")
        if client not in self.session.server.excluded:
            self.session.inputs.left(client, self.clock.now())

    def note_speeds(self) -> None:
        """Write new observed speeds to the registry, for the next run and `fedhet clients list`."""
        if self.members is None:
            return
        for client in self.members.now():
            seen = self.session.server.observed(client)
            if seen.seconds_per_step and seen.finished != self.observed.get(client, 0):
                self.observed[client] = seen.finished
                self.members.observe(client, seen.seconds_per_step)

    def _join(self, client: ClientId) -> None:
        """A client is online: pass it to the engine, unless it is revoked, paused, or suspended by the gate."""
        here = client in self.nodes.of_client and client in self.session.server.roster
        if here and client not in self.paused and client not in self.session.gate.suspended:
            self._introduce(client)
            self.session.inputs.joined(client, self.clock.now())

    def _introduce(self, client: ClientId) -> None:
        """Pass a client's profile to the schedule: observed values before measured ones, and these before those of the
        configuration."""
        roster = self.session.server.roster
        if client not in roster:
            return
        fields = self.nodes.declared_profile(client)
        member = self.members.now().get(client) if self.members is not None else None
        if member is not None:
            fields.pop("num_examples", None)  # not approved by the operator
        if member is not None and member.examples:
            fields["num_examples"] = member.examples
        if member is not None and member.profile is not None:
            known = {name: getattr(member.profile, name) for name in PROFILE_FIELDS}
            fields |= {name: value for name, value in known.items() if value and math.isfinite(value)}
        fields = {name: value for name, value in fields.items() if value != getattr(roster[client], name)}
        if fields:
            self.session.inputs.profile_update(client, fields)

    def expel(self) -> None:
        """Remove every client that is not active in the registry, with its updates that are not combined yet.

        Called before answers are validated and again before jobs are sent, because the registry may change in between.
        """
        if self.members is None:
            return
        server, active = self.session.server, self.members.now()
        prepared = [task.update.job for task in server.server_tasks.open.values()]
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
