"""A SuperNode's half of the conversation with a SuperLink, which has no public name: private touch points, as in
flower_compat.

Without the SuperNode's waits of three seconds, and without its new process for every message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message

from fedhet.flower_compat import set_message_id

PUSHES = 3
"""How often a reply is sent whose objects a SuperLink does not take."""


@dataclass(frozen=True, slots=True)
class FleetNode:
    """An online node: it can pull a message for it and push the reply. Both retry as long as the SuperLink is away."""

    node_id: int
    _receive: Callable[[], Any]
    _send: Callable[..., tuple[set[str], str]]
    _pull_object: Callable[[int, str], bytes]
    _push_object: Callable[[int, str, str, bytes], None]
    _confirm: Callable[[int, str], None]

    def pull(self) -> Message | None:
        """The next message, whole; None if there is none, or if its run has ended."""
        from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
        from flwr.supercore.run import RunNotRunningException

        try:
            received = self._receive()
            if received is None:
                return None
            run_id, tree = received[0].metadata.run_id, received[1]
            message: Message = pull_and_inflate_object_from_tree(
                tree,
                lambda object_id: self._pull_object(run_id, object_id),
                lambda object_id: self._confirm(run_id, object_id),
                return_type=Message,
            )
        except RunNotRunningException:
            return None
        set_message_id(message, tree.object_id)
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
