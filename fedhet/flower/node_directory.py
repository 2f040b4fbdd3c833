"""Which Flower node is which client: from a `query.profile` message to each node, updated as nodes come and go.

In a federation the registry maps nodes to clients, and a node that declares another client is not admitted. A node
whose code differs from the server's in modules that the method needs is excluded, and the differences are reported.

    query   {"fedhet": {"modules": json list of names}}
    answer  {"profile": {...}, "fedhet": {"protocol": int, "code": json object of hashes by name}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedhet.protocols import Clock
from fedhet.provenance import device_code
from fedhet.types import ClientId

DECLARED_FIELDS = {"sec_per_step": float, "num_examples": int, "max_rank": int, "memory_bytes": float}
"""Fields of a profile that a node may declare in its answer, with their types."""
MIN_WAIT_S, MAX_WAIT_S, WAIT_FACTOR = 5.0, 30.0, 3.0
"""How long a run with enough clients waits for those that have not answered: WAIT_FACTOR times the time of the slowest
answer, within these bounds."""


def absence_notices(here: int, clients: int) -> list[str]:
    """The notice for a run in which only `here` of a fleet's clients took part; empty if all did."""
    if here >= clients:
        return []
    return [
        f"{here} of fleet.clients={clients} clients took part: the others count in no metric, and data that is divided "
        f"among {clients} was used in part; with fleet.clients={here} it is all used, and what a method divides by the "
        "number of clients, such as control variates, is right"
    ]


class NoClients(RuntimeError):
    """Too few nodes answered in time."""


@dataclass
class NodeDirectory:
    """Client numbers and node ids of a live grid. A node declares its client number as `partition-id`.

    `registry` gives the client of each enrolled node, where clients are enrolled: other nodes are ignored. `code` has
    the hashes of the modules in which a node must agree with the server.

    `of_client` maps the clients that can be given jobs to their nodes, `config` to what they declared; `incompatible`
    maps clients with other code to the differences.
    """

    grid: Grid
    clock: Clock
    registry: Callable[[], Mapping[int, ClientId]] | None = None
    code: Mapping[str, str] = field(default_factory=dict)
    of_client: dict[ClientId, int] = field(default_factory=dict)
    config: dict[ClientId, dict[str, Any]] = field(default_factory=dict)
    incompatible: dict[ClientId, str] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)
    _answered: set[int] = field(default_factory=set)
    _contradicting: set[int] = field(default_factory=set)
    """Nodes that declared another client than the registry."""
    _excluded: dict[int, ClientId] = field(default_factory=dict)
    """Nodes of incompatible clients."""

    def refresh(self, *, at_once: bool = False) -> tuple[list[ClientId], list[ClientId]]:
        """Query the grid once, without waiting; the clients that joined and those that left since the last call.

        A client joins when it answers; with `at_once`, for a resumed run whose clients are training, when both the
        registry and the grid list it.
        """
        online = set(self.grid.get_node_ids())
        self._answered &= online
        registry = None if self.registry is None else self.registry()
        if registry is not None:
            online &= set(registry) - self._contradicting
        self._forget(online)
        self._ask(sorted(online - self._known))
        came = self._answers(registry)
        gone = [client for client, node in self.of_client.items() if node not in online or node in self._excluded]
        for client in gone:
            node = self.of_client.pop(client)
            if node not in self._excluded:
                self._known.discard(node)
        for node, client in sorted((registry or {}).items()):  # one may have been out of the registry for a while
            heard = node in online and (at_once or node in self._answered)
            if heard and node not in self._contradicting | set(self._excluded) and client not in self.of_client:
                self.of_client[client] = node
                came.append(client)
        return sorted(came), sorted(gone)

    def gather(
        self, wanted: int, seconds: float, pause: Callable[[], None], *, least: int | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Wait until `wanted` clients have answered, or until no more answer and `least` have (default: `wanted`).

        `pause` sleeps between queries; `waiting` is called when no more answer and too few have. Raises NoClients after
        `seconds`.
        """
        least, here, begun = wanted if least is None else least, 0, self.clock.now()
        max_quiet, quiet = MAX_WAIT_S, begun + MAX_WAIT_S
        while True:
            self.refresh()
            now = self.clock.now()
            if len(self.present) > here:
                max_quiet = min(MAX_WAIT_S, max(MIN_WAIT_S, WAIT_FACTOR * (now - begun)))
                here, quiet = len(self.present), now + max_quiet
            if here >= least and (here + len(self.incompatible) >= wanted or now > quiet):
                return
            if now > begun + seconds:
                raise NoClients(f"{here} of {least} clients answered within {seconds:g} seconds")
            if now > quiet:
                quiet = now + max_quiet
                waiting()
            pause()

    @property
    def silent(self) -> list[ClientId]:
        """Clients of the registry whose nodes are online and have not answered yet."""
        registry = {} if self.registry is None else self.registry()
        return sorted({registry[node] for node in self._asked.values() if node in registry} - set(self.of_client))

    @property
    def present(self) -> list[ClientId]:
        """Clients that are online and have answered."""
        return sorted(set(self.of_client) & set(self.config))

    @property
    def expecting(self) -> bool:
        """Whether a query has no answer yet."""
        return bool(self._asked)

    def declared_profile(self, client: ClientId) -> dict[str, Any]:
        """The fields of its profile that a client's node declared, if they are positive finite numbers."""
        given = self.config.get(client, {})
        return {
            name: kind(given[name])
            for name, kind in DECLARED_FIELDS.items()
            if isinstance(given.get(name), (int, float)) and 0 < given[name] < math.inf
        }

    def _forget(self, online: set[int]) -> None:
        """Nodes that left are queried again when they come back: they may have other code then."""
        for node in [node for node in self._excluded if node not in online]:
            self._known.discard(node)
            self.incompatible.pop(self._excluded.pop(node), None)
        for message in [message for message, node in self._asked.items() if node not in online]:
            self._known.discard(self._asked.pop(message))

    def _ask(self, nodes: list[int]) -> None:
        self._known |= set(nodes)
        head = {"modules": json.dumps(sorted(self.code))}
        messages = [
            Message(RecordDict({"fedhet": ConfigRecord(head)}), node, "query.profile", ttl=600.0)  # type: ignore[arg-type]
            for node in nodes
        ]
        accepted = set(self.grid.push_messages(messages)) if messages else set()
        for message in messages:
            if message.metadata.message_id in accepted:
                self._asked[message.metadata.message_id] = message.metadata.dst_node_id
            else:
                self._known.discard(message.metadata.dst_node_id)

    def _answers(self, registry: Mapping[int, ClientId] | None) -> list[ClientId]:
        came = []
        for reply in self.grid.pull_messages(list(self._asked)) if self._asked else []:
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            client = self._admit(node, reply, registry)
            if client is not None:
                came.append(client)
        return came

    def _admit(self, node: int, reply: Message, registry: Mapping[int, ClientId] | None) -> ClientId | None:
        """The client that joins by this answer, if any."""
        if reply.has_error():
            self._known.discard(node)  # queried again by the next refresh
            return None
        record = reply.content.config_records.get("profile")
        client = record.get("partition-id") if record is not None else None
        if not isinstance(client, int) or client < 0:
            client = None  # not a fedhet node; it stays known, so that it is not queried for ever
        if registry is not None and node in registry and client != registry[node]:
            self._contradicting.add(node)  # the next refresh removes it
            return None
        if client is None or (registry is not None and node not in registry):
            return None
        if other := self._difference(reply):
            self.incompatible[client], self._excluded[node] = other, client
            return None
        self._answered.add(node)
        self.config[client] = dict(record or {})
        new = client not in self.of_client
        self.of_client[client] = node
        return client if new else None

    def _difference(self, reply: Message) -> str:
        """How a node's code differs from the server's; empty if nothing is compared or nothing differs."""
        if not self.code:
            return ""
        head: Mapping[str, Any] = reply.content.config_records.get("fedhet") or {}
        try:
            theirs = json.loads(str(head.get("code", "{}")))
        except (ValueError, RecursionError):
            theirs = {}
        return device_code.difference(self.code, theirs if isinstance(theirs, dict) else {}, head.get("protocol"))
