"""Every test: no network, a Flower home of its own, one torch thread."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read by Flower when it is first imported, and by the processes that tests start.
os.environ["FLWR_HOME"] = tempfile.mkdtemp(prefix="fedhet-flwr-home-")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)

_connect, _connect_ex, _sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto


class NetworkUsed(RuntimeError):
    """A test tried to reach another machine."""


def _guard(sock: socket.socket, address: Any) -> None:
    if sock.family == socket.AF_UNIX:
        return
    host = str(address[0])
    if host.startswith("127.") or host in ("::1", "localhost", "0.0.0.0", "::", "::ffff:127.0.0.1"):
        return
    # Ray asks the kernel which address it would use, by connecting a datagram socket; nothing is sent by that.
    if sock.type == socket.SOCK_DGRAM and address[0] in ("8.8.8.8", "2001:4860:4860::8888"):
        raise OSError("no network in tests")
    raise NetworkUsed(f"a test tried to connect to {address!r}: tests run on loopback only")


FEDERATIONS = tuple(f"tests/fedhet/enroll/test_{name}.py" for name in ("live_runs", "killed", "live"))
"""Federations of real processes would wait for each other's processors and run into their time limits."""


def share(nodeid: str) -> str:
    """What of the tests runs in one process: a file, or all federations."""
    path = nodeid.partition("::")[0]
    return "federations" if path in FEDERATIONS else path


class Shares(LoadScopeScheduling):
    """Hands out whole shares."""

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    return Shares(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest share comes first, then what else starts processes."""
    items.sort(key=lambda item: (share(item.nodeid) != "federations", "tests/transports/" not in item.nodeid))


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Sockets reach loopback and unix sockets, nothing else."""

    def connect(self: socket.socket, address: Any) -> None:
        _guard(self, address)
        _connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        _guard(self, address)
        return _connect_ex(self, address)

    def sendto(self: socket.socket, data: bytes, *rest: Any) -> int:
        _guard(self, rest[-1])
        return _sendto(self, data, *rest)

    socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto = connect, connect_ex, sendto  # type: ignore[method-assign,assignment]
    yield
    socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto = _connect, _connect_ex, _sendto  # type: ignore[method-assign]


@pytest.fixture
def conf() -> Path:
    """The folder of the configuration groups."""
    from fedhet import origin

    return origin.conf()
