"""The federation as a running ServerApp sees it: the active clients with their keys and profiles.

The registry is read again whenever its file has changed, so a client that was revoked a second ago is not among the
members, and its pending updates can be dropped.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import update_signature
from fedhet.federation.pki.update_signature import Statement
from fedhet.federation.server import client_profiles, schema
from fedhet.federation.server.registry import Client, Registry
from fedhet.population.profile import Profile
from fedhet.types import ClientId

SMOOTHING = 0.3
"""Weight of the newest observation in the exponential moving average of seconds per step."""


@dataclass(frozen=True, slots=True)
class Member:
    """An active client: node id, identity key, the SuperLink's id of its node, and the profile that a schedule gets.

    `expires` is the expiry of its newest certificate, in seconds since 1970. `declared_examples` is the number of
    examples that it declares, `examples` how many of them an operator approved; 0 if it declares none."""

    client: ClientId
    name: str
    node: str
    public: bytes
    flower_node: int | None
    profile: Profile | None
    expires: float = float("inf")
    examples: int = 0
    declared_examples: int = 0


class Members:
    """Reads a federation's registry and writes its observed column. Close it at the end of the run."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        if not (home / "registry.db").is_file():
            raise EnrollError("E306", f"{home} contains no federation")
        self.clock = clock
        self._registry = Registry(home / "registry.db")
        self._file = sqlite3.connect(home / "registry.db", timeout=30.0)
        self._version = -1
        self._members: Mapping[ClientId, Member] = {}
        self._states: Mapping[ClientId, str] = {}

    @classmethod
    def here(cls) -> Members | None:
        """The federation whose `fedhet serve` started this process (FEDHET_HOME); None outside of one."""
        home = os.environ.get("FEDHET_HOME", "")
        return cls(Path(home)) if home else None

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        self._registry.close()

    def now(self) -> Mapping[ClientId, Member]:
        """The clients that are active now."""
        self._read()
        return self._members

    def nodes(self) -> dict[int, ClientId]:
        """Client by SuperLink node id, from the registry; what a node declares itself is not used."""
        return {m.flower_node: m.client for m in self.now().values() if m.flower_node is not None}

    def declared_examples(self, client: ClientId) -> float:
        """Number of examples that an active client declares, approved or not; 0 for other clients."""
        member = self.now().get(client)
        return 0.0 if member is None else float(member.declared_examples)

    def state(self, client: ClientId) -> str:
        """A client's registry state; "unknown" for one that never enrolled."""
        self._read()
        return self._states.get(client, "unknown")

    def check(self, client: ClientId, statement: Statement, signature: bytes) -> None:
        """Raises EnrollError E202 or E201 if the client is not active now, E205 unless it signed the statement."""
        member = self.now().get(client)
        if member is None:
            raise EnrollError("E202", f"client {client} is {self.state(client)}")
        if self.clock() > member.expires:
            raise EnrollError("E201", f"client {client}")
        if member.node != statement.node or not update_signature.verify(member.public, statement, signature):
            raise EnrollError("E205", f"client {client}")

    def observe(self, client: ClientId, sec_per_step: float) -> float | None:
        """Add one observation in seconds per step to the client's moving average, and return the average.

        For a client that is neither active nor suspended, for example one revoked a moment ago, nothing is written and
        None is returned. Raises ValueError unless `sec_per_step` is positive and finite.
        """
        if not 0 < sec_per_step < float("inf"):
            raise ValueError(f"sec_per_step={sec_per_step} must be a positive number of seconds")
        for found in self._registry.clients(schema.ACTIVE, schema.SUSPENDED):
            if found.client_id == client:
                before = found.observed.get("sec_per_step", sec_per_step)
                mean = float(before + SMOOTHING * (sec_per_step - before))
                count = int(found.observed.get("finished", 0)) + 1
                self._registry.observe(found.number, sec_per_step=mean, finished=count)
                return mean
        return None

    def _read(self) -> None:
        """Read the registry if another connection has changed it."""
        (version,) = self._file.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return
        clients = self._registry.clients()
        self._members = {c.client_id: _member(c) for c in clients if c.state == schema.ACTIVE}
        self._states = {c.client_id: c.state for c in sorted(clients, key=lambda c: c.state in schema.LIVING)}
        self._version = version


def _member(client: Client) -> Member:
    assert client.node is not None and client.public is not None  # every active client has a device
    flower_node = None if client.flower_node is None else int(client.flower_node)
    expires = float("-inf") if client.expires is None else client.expires
    name, profile = client.name, client_profiles.believed(client)
    counts = client_profiles.examples(client), int(client.declared.get("examples", 0))
    return Member(client.client_id, name, client.node, client.public, flower_node, profile, expires, *counts)
