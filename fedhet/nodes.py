"""Which Flower node is which client: asked by a `query.profile` message, kept up to date as nodes come and go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedhet.protocols import Clock
from fedhet.types import ClientId


class NoClients(RuntimeError):
    """Too few nodes answered in time."""


@dataclass
class Nodes:
    """Client numbers and node ids of a live grid. A node declares its number as `partition-id`."""

    grid: Grid
    clock: Clock
    of_client: dict[ClientId, int] = field(default_factory=dict)
    config: dict[ClientId, dict[str, Any]] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)

    def refresh(self) -> tuple[list[ClientId], list[ClientId]]:
        """Look at the grid once, without waiting; the clients that came and those that went since the last look."""
        online = set(self.grid.get_node_ids())
        new = sorted(online - self._known)
        self._known |= set(new)
        messages = [Message(RecordDict(), node, "query.profile", ttl=600.0) for node in new]
        accepted = set(self.grid.push_messages(messages)) if messages else set()
        for message in messages:
            if message.metadata.message_id in accepted:
                self._asked[message.metadata.message_id] = message.metadata.dst_node_id
            else:
                self._known.discard(message.metadata.dst_node_id)
        came = []
        for reply in self.grid.pull_messages(list(self._asked)) if self._asked else []:
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            client = self._admit(node, reply)
            if client is not None:
                came.append(client)
        gone = [client for client, node in self.of_client.items() if node not in online]
        for client in gone:
            self._known.discard(self.of_client.pop(client))
        return sorted(came), sorted(gone)

    def gather(self, wanted: int, seconds: float, nap: Callable[[], None]) -> None:
        """Wait until `wanted` clients are known. Raises NoClients after `seconds`."""
        end = self.clock.now() + seconds
        while len(self.of_client) < wanted:
            self.refresh()
            if len(self.of_client) >= wanted:
                return
            if self.clock.now() > end:
                raise NoClients(f"{len(self.of_client)} of {wanted} clients answered within {seconds:g} seconds")
            nap()

    def _admit(self, node: int, reply: Message) -> ClientId | None:
        if reply.has_error():
            self._known.discard(node)  # asked again at the next look
            return None
        record = reply.content.config_records.get("profile")
        client = record.get("partition-id") if record is not None else None
        if not isinstance(client, int) or client < 0:
            return None  # not one of ours; it stays known, so that it is not asked for ever
        self.of_client[client] = node
        self.config[client] = dict(record or {})
        return client
