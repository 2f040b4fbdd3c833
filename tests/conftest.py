"""Every test: no network, a Flower home of its own, one torch thread, a time limit, the same examples every time."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import tempfile
from collections.abc import Generator, Iterator
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
import pytest_timeout
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)

# What depends on the speed of the machine fails nothing: neither an example that takes long nor many that are made
# slowly. `--hypothesis-profile=explore` looks for new examples, other ones each time (README.md).
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", settings.get_profile("repeatable"), derandomize=False, max_examples=1000)
settings.load_profile("repeatable")

_constants, _none = providers._get_local_constants, providers._get_local_constants().__class__()


def _known_constants() -> providers.Constants:
    """Hypothesis tries numbers that it reads in the modules that happen to be loaded, so that a test's examples would
    depend on which tests ran before it in the same process."""
    return _none if settings.default is not None and settings.default.derandomize else _constants()


providers._get_local_constants = _known_constants

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


FEDERATIONS = tuple(f"tests/fedhet/federation/test_{name}.py" for name in ("live_runs", "killed", "live"))
"""Federations of real processes would wait for each other's processors and run into their time limits."""


def share(nodeid: str) -> str:
    """What of the tests runs in one process: a file, or all federations."""
    path = nodeid.partition("::")[0]
    return "federations" if path in FEDERATIONS else path


class Shares(LoadScopeScheduling):
    """Hands out whole shares."""

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid)

    def remove_node(self, node: Any) -> str | None:
        """A test whose process died has failed: the next process goes on behind it, and does not die of it again."""
        for unit in self.assigned_work[node].values():
            for nodeid in [nodeid for nodeid, done in unit.items() if not done][:1]:
                unit[nodeid] = True
                super().remove_node(node)
                return nodeid
        super().remove_node(node)
        return None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    return Shares(config, log)


FEDERATION_S = 600.0
"""Seconds for a test that starts a federation: the limits of its own steps are to be hit first."""

TEARDOWN_S = 120.0
"""Seconds for what follows a test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest share comes first, then what else starts processes; both have more time."""
    for item in items:
        if share(item.nodeid) == "federations" or "tests/transports/" in item.nodeid or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(FEDERATION_S), append=False)
    items.sort(key=lambda item: (share(item.nodeid) != "federations", "tests/transports/" not in item.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """A failure switches the test's time limits off, but what it leaves to its fixtures may hang as well."""
    limit = pytest_timeout.Settings(TEARDOWN_S, "signal", func_only=False, disable_debugger_detection=False)
    item.config.hook.pytest_timeout_set_timer(item=item, settings=limit)
    faulthandler.dump_traceback_later(2 * TEARDOWN_S, exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        item.config.hook.pytest_timeout_cancel_timer(item=item)


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
    from fedhet.provenance import source_tree

    return source_tree.conf()
