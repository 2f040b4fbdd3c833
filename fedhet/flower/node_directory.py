"""Which Flower node is which client: asked by a `query.profile` message, kept up to date as nodes come and go.

In a federation the registry says whose a node is, and a node that says otherwise is not admitted. A node that runs
other code than the server where the method needs the same is left out of the run, and it is said in what it differs.

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

TELLS = {"sec_per_step": float, "num_examples": int, "max_rank": int, "memory_bytes": float}
"""Fields of a profile that a node may tell in its answer, and what they are made of."""
SHORTEST_S, LONGEST_S, TIMES = 5.0, 30.0, 3.0
"""How long a run that may begin waits for those who are silent: so many times what the slowest answer took, within
these bounds."""


def absence(here: int, clients: int) -> list[str]:
    """What is to be said where not all of a fleet's clients are there."""
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
    """Client numbers and node ids of a live grid. A node declares its number as `partition-id`.

    `book` is the registry's word on which node is which client's, where there is one: a node that is not in it is
    ignored. `code` holds the hashes of the modules that a node must have as the server has them.

    `of_client` are the clients that can be given work; `strange` those that run other code, and in what they differ.
    """

    grid: Grid
    clock: Clock
    book: Callable[[], Mapping[int, ClientId]] | None = None
    code: Mapping[str, str] = field(default_factory=dict)
    of_client: dict[ClientId, int] = field(default_factory=dict)
    config: dict[ClientId, dict[str, Any]] = field(default_factory=dict)
    incompatible: dict[ClientId, str] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)
    _answered: set[int] = field(default_factory=set)
    _liars: set[int] = field(default_factory=set)
    _odd: dict[int, ClientId] = field(default_factory=dict)

    def refresh(self, *, at_once: bool = False) -> tuple[list[ClientId], list[ClientId]]:
        """Look at the grid once, without waiting; the clients that came and those that went since the last look.

        A client comes when it answers; with `at_once`, for a run that goes on and whose clients are at work, when the
        registry's book and the grid agree that it is there.
        """
        online = set(self.grid.get_node_ids())
        self._answered &= online
        book = None if self.book is None else self.book()
        if book is not None:
            online &= set(book) - self._liars
        self._forget(online)
        self._ask(sorted(online - self._known))
        came = self._answers(book)
        gone = [client for client, node in self.of_client.items() if node not in online or node in self._odd]
        for client in gone:
            node = self.of_client.pop(client)
            if node not in self._odd:
                self._known.discard(node)
        for node, client in sorted((book or {}).items()):  # one may have been out of the book for a while
            heard = node in online and (at_once or node in self._answered)
            if heard and node not in self._liars | set(self._odd) and client not in self.of_client:
                self.of_client[client] = node
                came.append(client)
        return sorted(came), sorted(gone)

    def gather(
        self, wanted: int, seconds: float, nap: Callable[[], None], *, least: int | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Wait until `wanted` clients have answered, or until nobody further does and `least` have (default: `wanted`).

        `waiting` is called where it goes on waiting although nobody further answers. Raises NoClients after `seconds`.
        """
        least, here, begun = wanted if least is None else least, 0, self.clock.now()
        patience, quiet = LONGEST_S, begun + LONGEST_S
        while True:
            self.refresh()
            now = self.clock.now()
            if len(self.present) > here:
                patience = min(LONGEST_S, max(SHORTEST_S, TIMES * (now - begun)))
                here, quiet = len(self.present), now + patience
            if here >= least and (here + len(self.incompatible) >= wanted or now > quiet):
                return
            if now > begun + seconds:
                raise NoClients(f"{here} of {least} clients answered within {seconds:g} seconds")
            if now > quiet:
                quiet = now + patience
                waiting()
            nap()

    @property
    def silent(self) -> list[ClientId]:
        """Clients of the registry whose nodes are online and have not answered yet."""
        book = {} if self.book is None else self.book()
        return sorted({book[node] for node in self._asked.values() if node in book} - set(self.of_client))

    @property
    def present(self) -> list[ClientId]:
        """Clients that are online and have answered."""
        return sorted(set(self.of_client) & set(self.config))

    @property
    def expecting(self) -> bool:
        """Whether a node was asked and has not answered yet."""
        return bool(self._asked)

    def declared_profile(self, client: ClientId) -> dict[str, Any]:
        """The fields of its profile that a client's node told, where they are positive numbers and finite."""
        given = self.config.get(client, {})
        return {
            name: kind(given[name])
            for name, kind in TELLS.items()
            if isinstance(given.get(name), (int, float)) and 0 < given[name] < math.inf
        }

    def _forget(self, online: set[int]) -> None:
        """NodeDirectory that went are asked anew when they come back: they may have other code then."""
        for node in [node for node in self._odd if node not in online]:
            self._known.discard(node)
            self.incompatible.pop(self._odd.pop(node), None)
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

    def _answers(self, book: Mapping[int, ClientId] | None) -> list[ClientId]:
        came = []
        for reply in self.grid.pull_messages(list(self._asked)) if self._asked else []:
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            client = self._admit(node, reply, book)
            if client is not None:
                came.append(client)
        return came

    def _admit(self, node: int, reply: Message, book: Mapping[int, ClientId] | None) -> ClientId | None:
        """A client that is new by this answer."""
        if reply.has_error():
            self._known.discard(node)  # asked again at the next look
            return None
        record = reply.content.config_records.get("profile")
        client = record.get("partition-id") if record is not None else None
        if not isinstance(client, int) or client < 0:
            client = None  # not one of ours; it stays known, so that it is not asked for ever
        if book is not None and node in book and client != book[node]:
            self._liars.add(node)  # and gone at the next look
            return None
        if client is None or (book is not None and node not in book):
            return None
        if other := self._difference(reply):
            self.incompatible[client], self._odd[node] = other, client
            return None
        self._answered.add(node)
        self.config[client] = dict(record or {})
        new = client not in self.of_client
        self.of_client[client] = node
        return client if new else None

    def _difference(self, reply: Message) -> str:
        """In what a node's code is not ours; empty where nothing is compared or nothing differs."""
        if not self.code:
            return ""
        told: Mapping[str, Any] = reply.content.config_records.get("fedhet") or {}
        try:
            theirs = json.loads(str(told.get("code", "{}")))
        except (ValueError, RecursionError):
            theirs = {}
        return device_code.difference(self.code, theirs if isinstance(theirs, dict) else {}, told.get("protocol"))
