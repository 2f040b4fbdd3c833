"""A SuperNode's half of the conversation with a SuperLink, which has no public name: private touch points, as in
flower_compat.

Without the SuperNode's waits of three seconds, and without its new process for every message. A SuperLink announces a
message when the server begins to upload it, and everybody's before anybody's; Flower then waits for a second and longer
for what is not there yet, and for minutes if the server was killed in the middle. Here it is asked for again soon, and
whatever else comes meanwhile is taken first if it is whole first.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message

from fedhet.flower.compat import ErrorCode, set_message_id

log = logging.getLogger("fedhet.fleet")

SOONEST_S, LATEST_S, SHARE = 0.02, 1.0, 0.1
"""The pause before the next look at what is coming: a share of the time it has been coming, within these bounds."""

NOT_SENT = "the message was not sent to its end"

PUSHES = 3
"""How often a reply is sent whose objects a SuperLink does not take."""


@dataclass(slots=True)
class _Coming:
    """A message that was announced, itself without its content, and what is here of it."""

    announced: Message
    tree: Any
    parts: dict[str, bytes] = field(default_factory=dict)

    def fetch(self, pull: Callable[[int, str], bytes]) -> bool:
        """Ask for the missing parts, several at a time; True if that was all. Raises ObjectPullError if they will not
        come."""
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects

        late: list[str] = []

        def part(name: str) -> bytes:
            try:
                self.parts[name] = pull(self.announced.metadata.run_id, name)
            except ObjectUnavailableError:  # Flower would wait for it
                late.append(name)
            return b""

        pull_objects(list({one.object_id for one in iterate_object_tree(self.tree)} - set(self.parts)), part)
        return not late


@dataclass(frozen=True, slots=True)
class FleetNode:
    """An online node: it can pull a message for it and push the reply. Both retry as long as the SuperLink is away."""

    node_id: int
    _receive: Callable[[], Any]
    _send: Callable[..., tuple[set[str], str]]
    _pull_object: Callable[[int, str], bytes]
    _push_object: Callable[[int, str, str, bytes], None]
    _confirm: Callable[[int, str], None]
    _coming: list[_Coming] = field(default_factory=list)

    def pull(self) -> Message | None:
        """The next message that is whole; None if none is on its way."""
        begun = time.monotonic()
        while True:
            self._hear()
            for one in list(self._coming):
                message = self._take(one)
                if message is not None:
                    return message
            if not self._coming:
                return None
            time.sleep(min(LATEST_S, max(SOONEST_S, SHARE * (time.monotonic() - begun))))

    def _hear(self) -> None:
        from flwr.supercore.run import RunNotRunningException

        with contextlib.suppress(RunNotRunningException):
            received = self._receive()
            if received is not None:
                self._coming.append(_Coming(*received))

    def _take(self, one: _Coming) -> Message | None:
        """The message if it is whole. One that never will be is answered with an error: somebody may wait for it."""
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents
        from flwr.supercore.run import RunNotRunningException

        name = one.tree.object_id
        try:
            if not one.fetch(self._pull_object):
                return None
            self._confirm(one.announced.metadata.run_id, name)
        except RunNotRunningException:
            self._coming.remove(one)
            return None
        except ObjectPullError:
            self._coming.remove(one)
            log.warning(NOT_SENT)
            self.push(Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, NOT_SENT), reply_to=one.announced), 0.0)
            return None
        self._coming.remove(one)
        message = inflate_object_from_contents(name, one.parts)
        if not isinstance(message, Message):
            raise TypeError(f"expected a message, but got {type(message).__name__}")
        set_message_id(message, name)
        return message

    def push(self, reply: Message, seconds: float) -> bool:
        """Send a reply that took so many seconds; False if its run has ended.

        A SuperLink that died in the middle forgot what the objects were for: the same reply is announced again, or the
        server would wait for them until Flower gives them up, which takes three minutes.
        """
        from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
        from flwr.supercore.run import RunNotRunningException

        set_message_id(reply, reply.object_id)
        tries = PUSHES
        while True:
            try:
                self._push_whole(reply, seconds)
            except RunNotRunningException:
                return False
            except ObjectPushError:
                tries -= 1
                if not tries:
                    raise
            else:
                return True

    def _push_whole(self, reply: Message, seconds: float) -> None:
        from flwr.supercore.inflatable.inflatable_object import (
            get_all_nested_objects,
            get_object_tree,
            no_object_id_recompute,
        )
        from flwr.supercore.inflatable.inflatable_utils import push_objects

        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            wanted, session = self._send(reply, get_object_tree(reply), seconds)
            push_objects(
                get_all_nested_objects(reply),
                lambda object_id, content: self._push_object(run_id, session, object_id, content),
                object_ids_to_push=wanted,
            )


@contextlib.contextmanager
def fleet(address: str, root: str, key: ec.EllipticCurvePrivateKey) -> Iterator[FleetNode]:
    """Go online as the node of this key, with heartbeats until the end. `root` is a path to a PEM certificate.

    A refusal ends the process, as it does with Flower's own SuperNode: an exit at first, a SIGINT later.
    """
    from flwr.supernode.fleet_http_connection import http_request_response

    failure: Exception | None = None
    with http_request_response(address, False, root, (key, key.public_key())) as parts:
        node_id, receive, send, _, _, pull_object, push_object, confirm = parts
        try:
            yield FleetNode(node_id, receive, send, pull_object, push_object, confirm)
        except Exception as error:  # Flower's context manager would log it and go on
            failure = error
    if failure is not None:
        raise failure


def forget(address: str, root: str, key: ec.EllipticCurvePrivateKey, node_id: int) -> None:
    """Take the node of this key offline: what a life that was killed did not do. Raises httpx.HTTPError."""
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    who, signed = RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())
    with FleetHttpClient.from_server_address(address, False, root, interceptors=[who, signed]) as client:
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
