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
    """Who there is: clients that may work, those of them that are online, and how many a method must expect.

    `expected` is one more than the largest number a client has, for a client's number is its part of the data.
    """

    active: tuple[str, ...]
    online: tuple[str, ...]
    expected: int


def connected_clients(home: Path, link: SuperLink) -> ConnectedClients:
    """Ask the registry and the SuperLink."""
    registry = Registry(home / "registry.db")
    try:
        active = registry.clients(schema.ACTIVE)
    finally:
        registry.close()
    states = {str(row["node-id"]): row["status"] for row in link.nodes()}
    online = tuple(c.name for c in active if states.get(str(c.flower_node)) == "online")
    numbers = [c.client_id for c in active]
    return ConnectedClients(tuple(c.name for c in active), online, 1 + max(numbers, default=-1))


def required_clients(there: ConnectedClients, least: int | None) -> tuple[int, int]:
    """How many clients the run waits for before it begins, and how many of them must answer. Raises EnrollError E313.

    Those that are online may answer or not: the run begins with who does, at least one. A number that was asked for is
    waited for.
    """
    if not there.active:
        raise EnrollError("E313", "no client is enrolled yet: fedhet enroll invite")
    if not there.online:
        raise EnrollError("E313", f"none of {_named(there.active)} is")
    if least is not None and least > len(there.active):
        raise EnrollError("E313", f"--wait-for {least}, and {len(there.active)} are enrolled: {_named(there.active)}")
    return (len(there.online), 1) if least is None else (least, least)


def waiting_notice(needed: int, roster: int, there: ConnectedClients) -> str:
    """What to say of a method whose rounds open with so many clients, where the run has room for `roster`; empty if
    enough are enrolled. Raises EnrollError E313 if more could never take part."""
    if needed > roster:
        told = f"a round opens with {needed} clients, and this run has room for {roster}"
        raise EnrollError("E313", f"{told}; raise fleet.clients if others are still to be enrolled")
    if needed > len(there.active):
        return f"a round opens with {needed} clients; {len(there.active)} are enrolled: the run waits for the others"
    return ""


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + ("" if len(names) <= 8 else f" and {len(names) - 8} more")
