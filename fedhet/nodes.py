"""Which Flower node is which client: asked by a `query.profile` message, kept up to date as nodes come and go.

In a federation the registry says whose a node is, and a node that says otherwise is not admitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedhet.protocols import Clock
from fedhet.types import ClientId

TELLS = {"sec_per_step": float, "num_examples": int, "max_rank": int, "memory_bytes": float}
"""Fields of a profile that a node may tell in its answer, and what they are made of."""


class NoClients(RuntimeError):
    """Too few nodes answered in time."""


@dataclass
class Nodes:
    """Client numbers and node ids of a live grid. A node declares its number as `partition-id`.

    `book` is the registry's word on which node is which client's, where there is one: a node that is not in it is
    ignored, and one that is in it is known before it answers.
    """

    grid: Grid
    clock: Clock
    book: Callable[[], Mapping[int, ClientId]] | None = None
    of_client: dict[ClientId, int] = field(default_factory=dict)
    config: dict[ClientId, dict[str, Any]] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)
    _liars: set[int] = field(default_factory=set)

    def refresh(self) -> tuple[list[ClientId], list[ClientId]]:
        """Look at the grid once, without waiting; the clients that came and those that went since the last look."""
        online = set(self.grid.get_node_ids())
        book = None if self.book is None else self.book()
        if book is not None:
            online &= set(book) - self._liars
        self._ask(sorted(online - self._known))
        came = self._answers(book)
        gone = [client for client, node in self.of_client.items() if node not in online]
        for client in gone:
            self._known.discard(self.of_client.pop(client))
        for node, client in sorted((book or {}).items()):
            if node in online and node not in self._liars and client not in self.of_client:
                self.of_client[client] = node
                came.append(client)
        return sorted(came), sorted(gone)

    def gather(self, wanted: int, seconds: float, nap: Callable[[], None]) -> None:
        """Wait until `wanted` clients have answered. Raises NoClients after `seconds`."""
        end = self.clock.now() + seconds
        while len(self.present) < wanted:
            self.refresh()
            if len(self.present) >= wanted:
                return
            if self.clock.now() > end:
                raise NoClients(f"{len(self.present)} of {wanted} clients answered within {seconds:g} seconds")
            nap()

    @property
    def present(self) -> list[ClientId]:
        """Clients that are online and have answered."""
        return sorted(set(self.of_client) & set(self.config))

    @property
    def expecting(self) -> bool:
        """Whether a node was asked and has not answered yet."""
        return bool(self._asked)

    def told(self, client: ClientId) -> dict[str, Any]:
        """The fields of its profile that a client's node told, where they are positive numbers and finite."""
        given = self.config.get(client, {})
        return {
            name: kind(given[name])
            for name, kind in TELLS.items()
            if isinstance(given.get(name), (int, float)) and 0 < given[name] < math.inf
        }

    def _ask(self, nodes: list[int]) -> None:
        self._known |= set(nodes)
        messages = [Message(RecordDict(), node, "query.profile", ttl=600.0) for node in nodes]
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
        self.config[client] = dict(record or {})
        new = client not in self.of_client
        self.of_client[client] = node
        return client if new else None
