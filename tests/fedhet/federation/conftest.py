"""A real federation behind real TLS on loopback, with a clock that tests can set."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import join
from fedhet.federation.pki import tls
from fedhet.federation.server.connection_limits import Guards
from fedhet.federation.server.http_api import service
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.policy import Policy

MEASURED = {"step_us": 900, "step_iqr_us": 40, "repeats": 9, "batch": 32, "noisy": 0}


class Clock:
    """The time, and how far a test has turned it."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


@contextlib.contextmanager
def _listening(app, certificate, lifespan="off"):
    """Serve an app with TLS on a free port of loopback; yields the port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        config = uvicorn.Config(app, ssl_certfile=certificate, log_level="warning", lifespan=lifespan, ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                threading.Event().wait(0.01)
            yield port
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def _guarded(app, certificate, lifespan="off", **given):
    """Serve an app as `fedhet serve` does, with TLS and its limits of connections; yields the port and the guards."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        guards = Guards(app, tls.serving(certificate), **given)
        server = uvicorn.Server(guards.config(log_level="error", lifespan=lifespan))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                threading.Event().wait(0.01)
            yield sock.getsockname()[1], guards
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def _refused(code, call, *args, **kwargs):
    with pytest.raises(EnrollError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


class Door:
    """A federation that devices can reach."""

    def __init__(self, folder, **policy):
        self.clock, self.folder = Clock(), folder
        self.policy = Policy(**{"failures_per_hour": 1000, "requests_per_minute": 10_000, **policy})
        self.federation = Federation.create(folder / "op", "test", "127.0.0.1:1", policy=self.policy, clock=self.clock)
        self.ticks = Clock()
        self.federation.ticks = self.ticks

    @contextlib.contextmanager
    def open(self, **given):
        certificate = self.federation.folder / "ca" / "server.pem"
        with _guarded(service(self.federation), certificate, **given) as (self.port, self.guards):
            yield self
        self.federation.close()

    def invite(self, name="", **given):
        name, token = self.federation.invite(name, **given)
        return name, self.line(token)

    def line(self, token):
        """The token, with the port that the system chose."""
        return type(token)(f"127.0.0.1:{self.port}", token.root, token.id, token.secret).line

    def begin(self, folder, line, data=None, **given):
        given = {"measured": MEASURED, "clock": self.clock, **given}
        return join.begin(self.folder / folder, line, data, **given)

    def device(self, folder):
        return join.Device(self.folder / folder, self.clock)

    def member(self, name, data=None):
        """A device that joined and was approved."""
        _, line = self.invite(name)
        self.begin(name, line, data)
        self.federation.approve(name)
        join.poll(self.device(name))
        return self.device(name)


@pytest.fixture
def door(tmp_path):
    with Door(tmp_path).open() as opened:
        yield opened


@pytest.fixture
def make_door(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda guards=None, **policy: stack.enter_context(Door(tmp_path, **policy).open(**(guards or {})))


@pytest.fixture
def guarded():
    """Serve an app behind the guards of connections."""
    return _guarded


@pytest.fixture
def refused():
    """Call something and expect a refusal with this code."""
    return _refused


@pytest.fixture
def listening():
    """Serve an app with TLS on a free port."""
    return _listening
