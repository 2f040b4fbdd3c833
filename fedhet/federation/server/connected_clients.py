"""Which clients of a federation are enrolled and online, and whether a run has enough of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server import schema
from fedhet.federation.server.registry import Registry
from fedhet.federation.server.superlink import SuperLink


@dataclass(frozen=True, slots=True)
class ConnectedClients:
    """Names of the active clients and of those online, and the number of clients that a run must be composed for.

    `expected` is the largest client number plus one, because a client's number selects its part of the data.
    """

    active: tuple[str, ...]
    online: tuple[str, ...]
    expected: int


def connected_clients(home: Path, link: SuperLink) -> ConnectedClients:
    """Read the registry, and ask the SuperLink which nodes are online. Raises EnrollError E308."""
    registry = Registry(home / "registry.db")
    try:
        active = registry.clients(schema.ACTIVE)
    finally:
        registry.close()
    states = {str(row["node-id"]): row["status"] for row in link.nodes()}
    online = tuple(c.name for c in active if states.get(str(c.flower_node)) == "online")
    numbers = [c.client_id for c in active]
    return ConnectedClients(tuple(c.name for c in active), online, 1 + max(numbers, default=-1))


def required_clients(clients: ConnectedClients, least: int | None) -> tuple[int, int]:
    """The number of clients that a run waits for, and the number that must have answered when it begins.

    Without `least` the run waits for those online and begins with those that answer, at least one; a given number is
    waited for. Raises EnrollError E313 if too few are enrolled or none is online.
    """
    if not clients.active:
        raise EnrollError("E313", "no client is enrolled yet: fedhet enroll invite")
    if not clients.online:
        raise EnrollError("E313", f"none of {_named(clients.active)} is")
    if least is not None and least > len(clients.active):
        raise EnrollError(
            "E313", f"--wait-for {least}, and {len(clients.active)} are enrolled: {_named(clients.active)}"
        )
    return (len(clients.online), 1) if least is None else (least, least)


def waiting_notice(needed: int, roster: int, clients: ConnectedClients) -> str:
    """A notice for a method whose rounds need `needed` clients, in a run of at most `roster`; "" if enough are
    enrolled.

    Raises EnrollError E313 if the run can never have that many.
    """
    if needed > roster:
        text = f"a round opens with {needed} clients, and this run has room for {roster}"
        raise EnrollError("E313", f"{text}; raise fleet.clients if others are still to be enrolled")
    if needed > len(clients.active):
        return f"a round opens with {needed} clients; {len(clients.active)} are enrolled: the run waits for the others"
    return ""


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + ("" if len(names) <= 8 else f" and {len(names) - 8} more")
