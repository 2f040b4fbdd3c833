"""A node's side of the protocol with a SuperLink, with private names of Flower 1.41 (see `compat`).

Unlike Flower's SuperNode it does not wait three seconds between pulls and starts no process per message. A SuperLink
announces a message when the server begins to upload it, and all messages of a round before the first is complete.
Flower then waits a second and longer for each missing part, and minutes if the server was killed during the upload.
Here missing parts are requested again soon, and the message that is complete first is returned first.
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

MIN_PAUSE_S, MAX_PAUSE_S, PAUSE_SHARE = 0.02, 1.0, 0.1
"""The pause before missing parts are requested again: a share of the time waited so far, within these bounds."""

NOT_SENT = "the message was not sent to its end"

MAX_PUSHES = 3
"""How often a reply is sent if the SuperLink does not accept its objects."""


@dataclass(slots=True)
class _Incoming:
    """A message that was announced (without its content), and the parts received so far."""

    announced: Message
    tree: Any
    parts: dict[str, bytes] = field(default_factory=dict)

    def fetch(self, pull: Callable[[int, str], bytes]) -> bool:
        """Request the missing parts, several at a time; True if the message is complete. Raises ObjectPullError if the
        upload was aborted."""
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
    """An online node: pulls messages and pushes replies. Both retry as long as the SuperLink is unreachable."""

    node_id: int
    _receive: Callable[[], Any]
    _send: Callable[..., tuple[set[str], str]]
    _pull_object: Callable[[int, str], bytes]
    _push_object: Callable[[int, str, str, bytes], None]
    _confirm: Callable[[int, str], None]
    _incoming: list[_Incoming] = field(default_factory=list)

    def pull(self) -> Message | None:
        """The next complete message; None if none was announced."""
        begun = time.monotonic()
        while True:
            self._poll()
            for one in list(self._incoming):
                message = self._take(one)
                if message is not None:
                    return message
            if not self._incoming:
                return None
            time.sleep(min(MAX_PAUSE_S, max(MIN_PAUSE_S, PAUSE_SHARE * (time.monotonic() - begun))))

    def _poll(self) -> None:
        from flwr.supercore.run import RunNotRunningException

        with contextlib.suppress(RunNotRunningException):
            received = self._receive()
            if received is not None:
                self._incoming.append(_Incoming(*received))

    def _take(self, one: _Incoming) -> Message | None:
        """The message if it is complete. One that never will be is answered with an error, so that the server does not
        wait for it."""
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents
        from flwr.supercore.run import RunNotRunningException

        name = one.tree.object_id
        try:
            if not one.fetch(self._pull_object):
                return None
            self._confirm(one.announced.metadata.run_id, name)
        except RunNotRunningException:
            self._incoming.remove(one)
            return None
        except ObjectPullError:
            self._incoming.remove(one)
            log.warning(NOT_SENT)
            self.push(Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, NOT_SENT), reply_to=one.announced), 0.0)
            return None
        self._incoming.remove(one)
        message = inflate_object_from_contents(name, one.parts)
        if not isinstance(message, Message):
            raise TypeError(f"expected a message, but got {type(message).__name__}")
        set_message_id(message, name)
        return message

    def push(self, reply: Message, seconds: float) -> bool:
        """Send a reply whose computation took `seconds`; False if its run has ended.

        A SuperLink that restarted during the upload has lost the announcement: the reply is announced again, otherwise
        the server would wait for its objects until Flower's timeout of three minutes.
        """
        from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
        from flwr.supercore.run import RunNotRunningException

        set_message_id(reply, reply.object_id)
        tries = MAX_PUSHES
        while True:
            try:
                self._push_once(reply, seconds)
            except RunNotRunningException:
                return False
            except ObjectPushError:
                tries -= 1
                if not tries:
                    raise
            else:
                return True

    def _push_once(self, reply: Message, seconds: float) -> None:
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
    """A context manager: the node of this key is online, with heartbeats, until its end. `root` is the path of a PEM
    file with the root certificate.

    If the SuperLink refuses the node, the process ends as Flower's own SuperNode does: by an exit at first, by a SIGINT
    later.
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
    """Take the node of this key offline, which a killed process did not do. Raises httpx.HTTPError."""
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    who, signed = RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())
    with FleetHttpClient.from_server_address(address, False, root, interceptors=[who, signed]) as client:
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
