"""The processes of the two baselines, which send updates as messages: permanent aggregators, functions with a broker.

    python parts.py ROLE ...        roles: aggregator, broker, sidecar, function

Messages are pickled numpy arrays, as with an RPC that copies. They are only sent between processes of this experiment,
on a Unix socket of its own; never unpickle data from elsewhere. An aggregator has a listening socket; a function gets
its messages through its sidecar, and the sidecar from the broker, which stores and forwards them by topic.
"""

from __future__ import annotations

import pickle
import sys
from collections import defaultdict, deque
from multiprocessing.connection import Client, Connection, Listener, wait


def aggregator(address: str) -> None:
    """Always on: sums `count` messages as they come and answers with the sum; again and again."""
    import numpy as np

    with Listener(address, "AF_UNIX") as listener:
        print("ready", flush=True)
        with listener.accept() as pipe:
            while True:
                try:
                    count = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    return
                total = None
                for _ in range(count):
                    x = pickle.loads(pipe.recv_bytes())
                    total = x.copy() if total is None else np.add(total, x, out=total)
                pipe.send_bytes(pickle.dumps(total, protocol=5))


def broker(address: str) -> None:
    """Keeps messages by topic until somebody asks: b"put" topic body, or b"get" topic."""
    kept: defaultdict[bytes, deque[bytes]] = defaultdict(deque)
    asking: defaultdict[bytes, deque[Connection]] = defaultdict(deque)
    with Listener(address, "AF_UNIX", backlog=64) as listener:
        print("ready", flush=True)
        pipes: list[Connection] = []
        socket = listener._listener._socket  # type: ignore[attr-defined]  # to wait for callers and messages at once
        while True:
            for one in wait([socket, *pipes]):
                if one is socket:
                    pipes.append(listener.accept())
                    continue
                try:
                    verb, topic = pickle.loads(one.recv_bytes())
                    if verb == b"put":
                        kept[topic].append(one.recv_bytes())
                    else:
                        asking[topic].append(one)
                except EOFError:
                    pipes.remove(one)
                    continue
                while kept[topic] and asking[topic]:
                    asking[topic].popleft().send_bytes(kept[topic].popleft())


def put(pipe: Connection, topic: str, body: bytes) -> None:
    pipe.send_bytes(pickle.dumps((b"put", topic)))
    pipe.send_bytes(body)


def get(pipe: Connection, topic: str) -> bytes:
    pipe.send_bytes(pickle.dumps((b"get", topic)))
    return pipe.recv_bytes()


def sidecar(address: str, own: str, topic: str, answer: str, count: str) -> None:
    """Between the broker and one function: every message passes through it, both ways."""
    with Listener(own, "AF_UNIX") as listener, Client(address, "AF_UNIX") as pipe:
        print("ready", flush=True)
        with listener.accept() as function:
            for _ in range(int(count)):
                function.send_bytes(get(pipe, topic))
            put(pipe, answer, function.recv_bytes())


def function(own: str, count: str) -> None:
    """Started for a few messages, sums them, answers, ends."""
    import numpy as np

    with Client(own, "AF_UNIX") as pipe:
        total = None
        for _ in range(int(count)):
            x = pickle.loads(pipe.recv_bytes())
            total = x.copy() if total is None else np.add(total, x, out=total)
        pipe.send_bytes(pickle.dumps(total, protocol=5))


if __name__ == "__main__":
    {"aggregator": aggregator, "broker": broker, "sidecar": sidecar, "function": function}[sys.argv[1]](*sys.argv[2:])
