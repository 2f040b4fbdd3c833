"""Connections of unenrolled peers: however many and however slow, enrolled devices are served."""

import contextlib
import json
import socket
import ssl
import time

import httpx
import pytest

from fedhet.federation.device import server_connection
from fedhet.federation.pki import tls
from fedhet.federation.server import connection_limits, http_api

HEAD = b"POST /v1/enroll/join HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n"


class ConnectedClients:
    """Raw connections to a door."""

    def __init__(self, door):
        self.tls = tls.trusting((door.federation.folder / "ca" / "root.pem").read_bytes())
        self.port, self.open = door.port, []

    def tcp(self, address="127.0.0.1"):
        made = socket.create_connection(("127.0.0.1", self.port), 10, source_address=(address, 0))
        self.open.append(made)
        return made

    def __call__(self, content=b"", address="127.0.0.1"):
        made = self.tls.wrap_socket(self.tcp(address), server_hostname="127.0.0.1")
        self.open[-1] = made
        made.sendall(content)
        return made

    def close(self):
        for each in self.open:
            each.close()


@pytest.fixture
def crowd():
    with contextlib.ExitStack() as stack:

        def made(door):
            new = ConnectedClients(door)
            stack.callback(new.close)
            return new

        yield made


def ended(connection, within=60.0):
    """What it was told until it was hung up on, which must come soon."""
    connection.settimeout(within)
    heard = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while part := connection.recv(4096):
            heard += part
    return heard


def served(device, address):
    """Whether a device is answered that asks over a connection of its own from this address."""
    body = b"{}"
    trust = tls.trusting((device.folder / "root.pem").read_bytes())
    with httpx.Client(transport=httpx.HTTPTransport(verify=trust, local_address=address), timeout=10) as client:
        answer = client.post(
            f"{device.url}/v1/enroll/whoami",
            content=body,
            headers=device.sealed("POST", "/v1/enroll/whoami", body),
        )
    return answer.json()["state"] == "active"


def test_hundreds_of_idle_connections_of_one_address_hold_no_device_up(make_door, crowd):
    door = make_door({"per_address": 40, "total": 60})
    device, others = door.member("a"), crowd(door)
    for n in range(240):
        others()
        if n % 80 == 79:
            assert served(device, "127.0.0.1") and served(device, "127.0.0.2")
    assert door.guards.count <= 41  # a connection that was ended may still be in the table
    for n in range(60):
        others(address=f"127.0.0.{3 + n % 5}")
    assert door.guards.count <= 60
    assert served(device, "127.0.0.1") and served(device, "127.0.0.2")


def test_room_is_made_by_the_oldest_idle_stranger_and_never_by_a_client_at_work(make_door, crowd):
    door = make_door({"per_address": 3, "total": 4})
    device, others = door.member("a"), crowd(door)
    trust = tls.trusting((device.folder / "root.pem").read_bytes())
    with server_connection.Link(device.url, trust) as client:
        sealed = device.sealed("POST", "/v1/enroll/whoami", b"{}")
        client.call("POST", "/v1/enroll/whoami", b"{}", sealed)
        slow, idle = others(HEAD), others()
        fresh = others()
        assert ended(idle) == b"", "the idle one makes room before the one that has begun a request"
        newer = others()
        assert ended(fresh) == b""
        sealed = device.sealed("POST", "/v1/enroll/whoami", b"{}")
        assert client.call("POST", "/v1/enroll/whoami", b"{}", sealed)["state"] == "active", "on the same connection"
        [known] = [each for group in door.guards._groups.values() for each in group if each.known]
        assert known.peer in door.guards._by_peer
        for at in (slow, newer):
            at.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                at.recv(1)


def test_handshakes_that_do_not_end_are_ended_and_hold_no_device_up(make_door, crowd, monkeypatch):
    monkeypatch.setattr(connection_limits, "HANDSHAKE_S", 0.4)
    door = make_door({"per_address": 20, "total": 40})
    device, others = door.member("a"), crowd(door)
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        others.tls.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1").do_handshake()
    content = hello.read()
    for n in range(60):
        with contextlib.suppress(OSError):
            others.tcp().sendall((b"", content[:40], content, b"GET / HTTP/1.1\r\n\r\n")[n % 4])
    assert served(device, "127.0.0.1") and served(device, "127.0.0.2")
    for each in others.open:
        ended(each)
    end = time.monotonic() + 60
    while door.guards.count and time.monotonic() < end:
        time.sleep(0.02)
    assert door.guards.count == 0 and not door.guards._by_peer


@pytest.mark.parametrize("begin", [b"", b"POST /v1/enroll/jo", HEAD.replace(b"/join", b"/nothing")])
def test_who_does_not_come_to_the_point_is_hung_up_on_though_bytes_keep_coming(make_door, crowd, monkeypatch, begin):
    """Nothing at all; a head a byte at a time; a body that nobody waits for any more."""
    monkeypatch.setattr(connection_limits, "SILENT_S", 0.3)
    monkeypatch.setattr(connection_limits, "HEAD_S", 0.3)
    door = make_door()
    slow, begun = crowd(door)(begin), time.monotonic()
    with contextlib.suppress(OSError):
        while begin and time.monotonic() < begun + 60:
            slow.sendall(b"x")
            time.sleep(0.05)
    ended(slow)
    assert time.monotonic() < begun + 60


def test_a_body_that_comes_a_byte_at_a_time_is_refused_in_time(make_door, crowd, monkeypatch):
    monkeypatch.setattr(http_api, "BODY_S", 0.4)
    door = make_door()
    slow, begun = crowd(door)(HEAD), time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() < begun + 1:
            slow.sendall(b" ")
            time.sleep(0.05)
    assert b"E115" in ended(slow)


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
        b"POST /v1/enroll/join HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2;" + b"e" * 200_000,
        b"POST /v1/enroll/join HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 200_000,
    ],
    ids=["long header", "many headers", "chunk", "trailer"],
)
def test_no_part_of_a_request_is_kept_at_any_length(make_door, crowd, content):
    door = make_door()
    stranger = crowd(door)()
    heard = b""
    with contextlib.suppress(OSError):
        stranger.sendall(content)
    heard = ended(stranger)
    assert heard == b"" or b"400" in heard.splitlines()[0]


def test_a_large_body_of_a_stranger_is_refused_before_it_is_read(make_door, crowd):
    door = make_door()
    stranger = crowd(door)(
        b"POST /v1/enroll/speed/0 HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n" + bytes(10)
    )
    answer = stranger.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400") and b"connection: close" in answer.lower()


def test_a_reader_that_takes_nothing_is_hung_up_on(guarded, door, crowd, monkeypatch):
    monkeypatch.setattr(connection_limits, "STALL_S", 0.3)

    async def much(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        await send({"type": "http.response.body"})

    with guarded(much, door.federation.folder / "ca" / "server.pem") as (door.port, guards):
        crowd(door)(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        end = time.monotonic() + 60
        while not guards.count and time.monotonic() < end:
            time.sleep(0.01)
        while guards.count and time.monotonic() < end:
            time.sleep(0.02)
        assert guards.count == 0


def test_a_stop_does_not_wait_for_those_who_are_silent(make_door, crowd):
    door = make_door()
    others = crowd(door)
    others(), others.tcp(), others(HEAD[:20])
    assert json.loads(httpx.get(f"https://127.0.0.1:{door.port}/v1/enroll/root", verify=others.tls).content)["root"]
