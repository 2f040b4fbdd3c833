"""Replies from a SuperLink, one by one as they are whole. Private to Flower 1.41 and 1.42, as `flower.compat`.

A SuperLink announces a reply when its sender begins to upload it, and Flower's own grid then waits for the rest: one
client on a slow line, or one that was switched off in the middle, would keep the server from everybody else and from
its own timers, until three minutes after the last byte. Nor does Flower's grid doubt what a reply says of itself. Here
what is not there yet is asked for at the next look, and a reply is what it was announced as, and no larger than
allowed, or it is empty: the gate then refuses it, and says so, like any other that is not in order.
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

SLACK = 1 << 20
"""Bytes a reply may have beside the payload that is expected: heads, metrics, Flower's names for its parts."""

PARTS = 100
"""Most parts of one reply that are fetched at a look: small ones take as long as large ones, and others wait."""

BROKEN_OFF = "its upload was broken off"


Allowance: TypeAlias = Callable[[str], int | None]
"""Of a request, by its id: bytes that the payload of its reply may have; None if nobody waits for it any more."""


class WholeReplies(Grid):
    """A SuperLink's grid. A reply that nobody waits for any more is given all the same, but empty."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._arriving: dict[str, _Arriving] = {}
        self.allowance: Allowance = lambda request: 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Of these requests, the replies that are whole by now, each fetched when it is asked for."""
        wanted = set(message_ids)
        if unheard := wanted - set(self._arriving):
            self._arriving |= {one.request: one for one in self._announced(unheard)}
        for request in [request for request in self._arriving if request in wanted]:
            reply = self._arriving[request].fetch(self.allowance(request))
            if reply is not None:
                del self._arriving[request]
                yield reply
        yield from self._forsaken(wanted)

    def _forsaken(self, wanted: set[str]) -> Iterator[Message]:
        """Errors for replies that are not whole and whose senders went offline, as a SuperLink gives where there is no
        reply at all; of one that it has announced it says nothing more."""
        late = [one for request, one in self._arriving.items() if request in wanted and one.waits]
        online = set(self._grid.get_node_ids()) if late else set()
        for one in late:
            if one.metadata.src_node_id in online:
                continue
            reply = one.fetch(self.allowance(one.request))  # it may have been whole before its sender went
            if reply is None and one.waits:
                reply = one.failed(ErrorCode.NODE_UNAVAILABLE, "")
            if reply is not None:
                del self._arriving[one.request]
                yield reply

    def _announced(self, requests: set[str]) -> list[_Arriving]:
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

        told = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=requests))
        found = []
        for proto, tree in zip(told.messages_list, told.message_object_trees, strict=True):
            parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
            found.append(_Arriving(self._grid, proto.metadata, parts[::-1]))
        return found

    # The rest as it is

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
    """A reply that was announced. `missing` are its parts that are not here yet, the first to be sent at the end."""

    grid: Any
    metadata: Any
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    waits: bool = False
    """Whether the next part was not there at the last look; if not, there was only no time for it."""

    @property
    def request(self) -> str:
        """The id of the message it answers."""
        return str(self.metadata.reply_to_message_id)

    def fetch(self, allowance: int | None) -> Message | None:
        """What there is, at most as much as honest replies are; None until it is whole. An error if its sender gave up.

        What is too large, or what nobody waits for, is fetched to its end, or its sender would take that for a failure
        of the SuperLink; but not kept.
        """
        from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

        allowed = SLACK + (allowance or 0)
        client, node = self.grid._runtime_client, self.grid.node
        pull = make_pull_object_fn_protobuf(client.PullObject, node, self.metadata.run_id)
        end, rest = self.size + allowed, len(self.missing) - PARTS  # of this look
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
                return self.failed(ErrorCode.MESSAGE_UNAVAILABLE, BROKEN_OFF)
            self.size += len(part)
            self.parts[self.missing.pop()] = part
            if allowance is None or self.size > allowed:
                self.parts.clear()
        reply = self._message(content=RecordDict()) if allowance is None else self._read(allowed)
        self._confirm()
        return reply

    def failed(self, code: int, reason: str) -> Message:
        """An error in its place."""
        return self._message(error=Error(code, reason))

    def _read(self, allowed: int) -> Message:
        """The message in the parts; an empty one if they are none, or another's, or too much."""
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        told, name = self.metadata, self.metadata.message_id
        try:
            if self.size > allowed:
                raise ValueError(f"it is larger than {allowed} bytes")
            if _expanded(self.parts) > allowed:
                raise ValueError(f"its arrays would be larger than {allowed} bytes")
            message = inflate_object_from_contents(name, self.parts)
            if not isinstance(message, Message):
                raise ValueError("it is no message")
            said = message.metadata
            about = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "message_type")
            if lies := [field for field in about if getattr(said, field) != getattr(told, field)]:
                raise ValueError(f"it says otherwise of its {lies[0]}")
        except Exception as error:  # whatever parsing somebody's bytes raises: it is that reply's fault, not the run's
            why = f"{type(error).__name__}: {shown(error)}"
            log.warning("the reply of node %d cannot be read: %s", told.src_node_id, why)
            return self._message(content=RecordDict())
        set_message_id(message, name)
        return message

    def _confirm(self) -> None:
        """It has been received: the SuperLink need not keep it."""
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        told = self.metadata
        self.grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.grid.node, run_id=told.run_id, message_object_id=told.message_id)
        )

    def _message(self, content: RecordDict | None = None, error: Error | None = None) -> Message:
        from flwr.app.message.message import make_message
        from flwr.common.serde_utils import metadata_from_proto

        return make_message(metadata_from_proto(self.metadata), content, error)


def _expanded(parts: dict[str, bytes]) -> int:
    """Bytes that the arrays among these parts take once they are made of their pieces: one may occur many times."""
    from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content

    total = 0
    for part in parts.values():
        kind, pieces, size = get_object_head_values_from_object_content(part)
        if kind == "Array":
            order = json.loads(part[len(part) - size :])["arraychunk_ids"]
            total += sum(len(parts[pieces[i]]) for i in order)
    return total


def whole_replies(grid: Grid) -> Grid:
    """The same grid, with replies as above if a SuperLink is behind it; grids within this process have no uploads."""
    from flwr.superlink.grid.http_grid import HttpGrid

    return WholeReplies(grid) if isinstance(grid, HttpGrid) else grid


def lost(error: Exception) -> bool:
    """Whether an exception says that the SuperLink, and not the app, could not go on."""
    import httpx

    return isinstance(error, httpx.HTTPError)


def allow(grid: Grid, allowance: Allowance) -> None:
    """How large the replies may be on a grid from `whole`."""
    if isinstance(grid, WholeReplies):
        grid.allowance = allowance
