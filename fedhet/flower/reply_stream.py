"""Replies from a SuperLink, each as soon as it is complete. Uses private names of Flower 1.41 and 1.42 (see `compat`).

A SuperLink announces a reply when its sender begins to upload it, and Flower's own grid then waits for the rest: one
client with a slow connection, or one that was switched off during the upload, would block the server's other clients
and timers until three minutes after the last byte. Nor does Flower's grid verify the metadata in a reply. Here missing
parts are requested again by the next pull. A reply that differs from its announcement or is larger than allowed becomes
an empty one, which the gate rejects as malformed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedhet.display import shown
from fedhet.flower.compat import ErrorCode, Run, set_message_id

log = logging.getLogger("fedhet.replies")

OVERHEAD_BYTES = 1 << 20
"""Bytes that a reply may have in addition to the expected payload: headers, metrics, object ids of Flower."""

MAX_PARTS_PER_PULL = 100
"""Parts of one reply that one pull fetches: a small part takes as long as a large one, and other replies wait."""

UPLOAD_ABORTED = "its upload was broken off"


Allowance: TypeAlias = Callable[[str], int | None]
"""Maps the id of a request to the largest size of its reply's payload in bytes; None if the reply is not needed any
more."""


class CompleteReplies(Grid):
    """A SuperLink's grid that yields complete replies only. A reply that is not needed any more is yielded empty."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._arriving: dict[str, _Arriving] = {}
        self.allowance: Allowance = lambda request: 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to these requests that are complete now, each fetched when the iterator reaches it."""
        wanted = set(message_ids)
        if unannounced := wanted - set(self._arriving):
            self._arriving |= {one.request: one for one in self._announced(unannounced)}
        for request in [request for request in self._arriving if request in wanted]:
            reply = self._arriving[request].fetch(self.allowance(request))
            if reply is not None:
                del self._arriving[request]
                yield reply
        yield from self._abandoned(wanted)

    def _abandoned(self, wanted: set[str]) -> Iterator[Message]:
        """Error replies for incomplete replies whose senders went offline. A SuperLink gives such an error only if it
        has announced no reply."""
        late = [one for request, one in self._arriving.items() if request in wanted and one.waits]
        online = set(self._grid.get_node_ids()) if late else set()
        for one in late:
            if one.metadata.src_node_id in online:
                continue
            reply = one.fetch(self.allowance(one.request))  # it may have been complete before its sender left
            if reply is None and one.waits:
                reply = one.failed(ErrorCode.NODE_UNAVAILABLE, "")
            if reply is not None:
                del self._arriving[one.request]
                yield reply

    def _announced(self, requests: set[str]) -> list[_Arriving]:
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

        pulled = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=requests))
        found = []
        for proto, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
            parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
            found.append(_Arriving(self._grid, proto.metadata, parts[::-1]))
        return found

    # Forwarded unchanged

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        run: Run = self._grid.run
        return run

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        message: Message = self._grid.create_message(*arguments, **more)
        return message

    def get_node_ids(self) -> Iterable[int]:
        ids: Iterable[int] = self._grid.get_node_ids()
        return ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: Iterable[str] = self._grid.push_messages(messages)
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies: Iterable[Message] = self._grid.send_and_receive(messages, timeout=timeout)
        return replies


@dataclass
class _Arriving:
    """A reply that was announced. `missing` are the ids of the parts not received yet, in reverse order of sending."""

    grid: Any
    metadata: Any
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    waits: bool = False
    """Whether the last pull ended because the next part was not uploaded yet, not because of its own limits."""

    @property
    def request(self) -> str:
        """The id of the request that it answers."""
        return str(self.metadata.reply_to_message_id)

    def fetch(self, allowance: int | None) -> Message | None:
        """Fetch parts, at most as many bytes as a valid reply has; None until the reply is complete. An error reply if
        its sender aborted the upload.

        A reply that is too large or not needed is fetched to its end, since its sender would take anything else for a
        failure of the SuperLink; its parts are not stored.
        """
        from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

        allowed = OVERHEAD_BYTES + (allowance or 0)
        client, node = self.grid._runtime_client, self.grid.node
        pull = make_pull_object_fn_protobuf(client.PullObject, node, self.metadata.run_id)
        end, rest = self.size + allowed, len(self.missing) - MAX_PARTS_PER_PULL  # limits of this pull
        self.waits = False
        while self.missing:
            if self.size > end or len(self.missing) <= rest:
                return None
            try:
                part = pull(self.missing[-1])
            except ObjectUnavailableError:
                self.waits = True
                return None
            except ObjectPullError:
                return self.failed(ErrorCode.MESSAGE_UNAVAILABLE, UPLOAD_ABORTED)
            self.size += len(part)
            self.parts[self.missing.pop()] = part
            if allowance is None or self.size > allowed:
                self.parts.clear()
        reply = self._message(content=RecordDict()) if allowance is None else self._read(allowed)
        self._confirm()
        return reply

    def failed(self, code: int, reason: str) -> Message:
        """An error reply instead of the reply."""
        return self._message(error=Error(code, reason))

    def _read(self, allowed: int) -> Message:
        """The message from its parts; an empty one if they are no message, another one's, or too large."""
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        announced, name = self.metadata, self.metadata.message_id
        try:
            if self.size > allowed:
                raise ValueError(f"it is larger than {allowed} bytes")
            if _expanded(self.parts) > allowed:
                raise ValueError(f"its arrays would be larger than {allowed} bytes")
            message = inflate_object_from_contents(name, self.parts)
            if not isinstance(message, Message):
                raise ValueError("it is no message")
            given = message.metadata
            about = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "message_type")
            if wrong := [field for field in about if getattr(given, field) != getattr(announced, field)]:
                raise ValueError(f"its {wrong[0]} is not the announced one")
        except Exception as error:  # parsing untrusted bytes may raise anything: it must not end the run
            why = f"{type(error).__name__}: {shown(error)}"
            log.warning("the reply of node %d cannot be read: %s", announced.src_node_id, why)
            return self._message(content=RecordDict())
        set_message_id(message, name)
        return message

    def _confirm(self) -> None:
        """Confirm that the reply was received: the SuperLink can delete it."""
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        run_id, name = self.metadata.run_id, self.metadata.message_id
        self.grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.grid.node, run_id=run_id, message_object_id=name)
        )

    def _message(self, content: RecordDict | None = None, error: Error | None = None) -> Message:
        from flwr.app.message.message import make_message
        from flwr.common.serde_utils import metadata_from_proto

        return make_message(metadata_from_proto(self.metadata), content, error)


def _expanded(parts: dict[str, bytes]) -> int:
    """Bytes of the arrays in these parts after assembly from their chunks; one chunk may occur many times."""
    from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content

    total = 0
    for part in parts.values():
        kind, pieces, size = get_object_head_values_from_object_content(part)
        if kind == "Array":
            order = json.loads(part[len(part) - size :])["arraychunk_ids"]
            total += sum(len(parts[pieces[i]]) for i in order)
    return total


def complete_replies(grid: Grid) -> Grid:
    """The same grid, wrapped as `CompleteReplies` if it is a SuperLink's; grids within a process have no uploads."""
    from flwr.superlink.grid.http_grid import HttpGrid

    return CompleteReplies(grid) if isinstance(grid, HttpGrid) else grid


def lost(error: Exception) -> bool:
    """Whether an exception means that the SuperLink, and not the app, failed."""
    import httpx

    return isinstance(error, httpx.HTTPError)


def allow(grid: Grid, allowance: Allowance) -> None:
    """Set the largest sizes of replies on a grid from `complete_replies`."""
    if isinstance(grid, CompleteReplies):
        grid.allowance = allowance
