"""The public port: what is forwarded to the SuperLink, what is not, and the client's identity."""

import contextlib
import socket
import threading
from base64 import b64encode

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fedhet.federation.device import server_connection
from fedhet.federation.pki import tls
from fedhet.federation.pki.certificates import DAY
from fedhet.federation.server import tls_proxy
from fedhet.federation.server.http_api import service
from fedhet.federation.server.superlink import SuperLink


def key_of(device):
    pem = device.identity.node.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return b64encode(pem).decode()


def wait_for(condition):
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError(condition)


class Behind:
    """A stand-in for the SuperLink that notes what reaches it, and a door in front of it."""

    def __init__(self, federation, port, root):
        self.federation, self.seen = federation, []
        self.url = f"https://127.0.0.1:{port}"
        self.client = httpx.Client(verify=tls.trusting(root), trust_env=False, base_url=self.url)

    def post(self, path, device=None, content=b"protobuf", **headers):
        if device is not None:
            headers["flwr-public-key"] = key_of(device)
        return self.client.post(path, content=content, headers=headers)

    def fleet(self, device):
        answer = self.post("/v1/fleet/pull-messages", device)
        return answer.status_code if answer.status_code == 200 else answer.json()["code"]


@pytest.fixture
def behind(door, listening, tmp_path):
    link_ = SuperLink(tmp_path / "flower")
    link_.prepare(door.clock())
    seen = []

    async def anything(request):
        seen.append((request.method, request.url.path, await request.body(), dict(request.headers)))
        return PlainTextResponse("answer " * 1000, headers={"x-flower": "1"})

    upstream = Starlette(routes=[Route("/{path:path}", anything, methods=["GET", "POST"])])
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(listening(upstream, link_.folder / "loopback.pem"))
        trust = tls.trusting(link_.root.read_bytes())
        app = tls_proxy.public_app(
            door.federation, service(door.federation), f"https://127.0.0.1:{port}", trust, most_bytes=10_000
        )
        front = stack.enter_context(listening(app, door.federation.folder / "ca" / "server.pem", lifespan="on"))
        root = (door.federation.folder / "ca" / "root.pem").read_bytes()
        made = Behind(door.federation, front, root)
        made.seen = seen
        yield made
        made.client.close()


def test_an_active_clients_messages_pass_unchanged_in_both_directions(door, behind):
    device = door.member("a")
    answer = behind.post("/v1/fleet/push-object", device, b"\x00\xff" * 4000, **{"flwr-timestamp": "now"})
    assert (answer.status_code, answer.text, answer.headers["x-flower"]) == (200, "answer " * 1000, "1")
    [(method, path, body, headers)] = behind.seen
    assert (method, path, body) == ("POST", "/v1/fleet/push-object", b"\x00\xff" * 4000)
    assert headers["flwr-timestamp"] == "now" and "flwr-public-key" in headers
    assert behind.client.get("/health").status_code == 200


def test_control_and_runtime_do_not_exist_outside(door, behind):
    device = door.member("a")
    closed = [
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/openapi.json",
        "/",
        "/v1",
        "/v1/enroll",
        "/v1/enroll/",
        "/v1/enroll/root/",
        "/v1/enroll/nothing",
        "/health/",
    ]
    closed += [
        "/v1/fleet/",
        "/v1/fleet/a/b",
        "/v1/fleet/..%2fcontrol%2flist-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
    ]
    for path in closed:
        answer = behind.post(path, device)
        assert (answer.status_code, answer.json()["code"]) == (404, "E120"), path
    assert "POST /v1/control/list-runs" in behind.post(closed[0], device).json()["detail"]
    answers = [
        behind.client.get("/v1/fleet/pull-messages"),
        behind.client.delete("/health"),
        behind.client.put("/v1/enroll/root"),
        behind.client.get("/v1/enroll/join"),
    ]
    assert [(each.status_code, each.json()["code"]) for each in answers] == [(405, "E121")] * 4
    assert behind.seen == []


def test_a_node_without_a_known_key_does_not_pass(door, behind):
    _, line = door.invite("waiting")
    door.begin("waiting", line)
    assert behind.fleet(None) == "E115"
    assert behind.post("/v1/fleet/pull-messages", **{"flwr-public-key": "AAAA"}).json()["code"] == "E115"
    assert behind.fleet(door.device("waiting")) == "E105"
    stranger = door.device("stranger")
    from fedhet.federation.pki.identity import Identity

    Identity.create(stranger.folder)
    assert behind.fleet(stranger) == "E208"
    assert behind.seen == []


def test_suspension_revocation_leaving_and_expiry_hold_from_the_next_message_on(door, behind):
    a, b, c = door.member("a"), door.member("b"), door.member("c")
    assert [behind.fleet(d) for d in (a, b, c)] == [200, 200, 200]
    door.federation.suspend("a")
    door.federation.revoke("b", "stolen")
    c.ask("leave")
    assert [behind.fleet(d) for d in (a, b, c)] == ["E206", "E202", "E212"]
    door.federation.resume("a")
    assert behind.fleet(a) == 200
    door.clock.ahead = 8 * DAY
    assert behind.fleet(a) == "E201"
    a.renew()
    assert behind.fleet(a) == 200
    assert len(behind.seen) == 5


def test_what_is_too_large_is_not_passed_on(door, behind):
    device = door.member("a")
    assert behind.post("/v1/fleet/push-object", device, b"x" * 10_001).json()["code"] == "E113"

    def endless():
        for _ in range(20):
            yield b"x" * 1000

    assert behind.post("/v1/fleet/push-object", device, endless()).status_code == 413
    assert behind.seen == []


def test_enrolment_answers_at_the_same_door(door, behind):
    root = server_connection.fetch_root(behind.url, door.federation.authority.fingerprint)
    assert root.startswith(b"-----BEGIN CERTIFICATE")
    port, door.port = door.port, int(behind.url.rsplit(":", 1)[1])
    device = door.member("through")
    door.port = port
    assert device.ask("whoami")["state"] == "active"


def test_a_superlink_that_is_down_is_a_503_for_the_node_to_try_again(door, listening, tmp_path):
    device = door.member("a")
    trust = tls.trusting((door.federation.folder / "ca" / "root.pem").read_bytes())
    app = tls_proxy.public_app(door.federation, service(door.federation), "https://127.0.0.1:1", trust)
    root = (door.federation.folder / "ca" / "root.pem").read_bytes()
    with listening(app, door.federation.folder / "ca" / "server.pem", lifespan="on") as port:
        front = Behind(door.federation, port, root)
        with front.client:
            assert front.post("/v1/fleet/pull-messages", device).status_code == 503


def test_many_messages_at_once_pass(door, behind):
    device, results = door.member("a"), []
    threads = [threading.Thread(target=lambda: results.append(behind.fleet(device))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200] * 20


class Slow:
    """Raw TLS connections that send the head of a message and then, at most, a byte now and then."""

    def __init__(self, behind, root):
        self.context, self.open = tls.trusting(root), []
        self.port = int(behind.url.rpartition(":")[2])

    def __call__(self, head, body=b"x"):
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        made = self.context.wrap_socket(raw, server_hostname="127.0.0.1")
        made.sendall(head + body)
        self.open.append(made)
        return made

    def close(self):
        for each in self.open:
            each.close()
        self.open.clear()


@pytest.fixture
def slow(door, behind):
    made = Slow(behind, (door.federation.folder / "ca" / "root.pem").read_bytes())
    yield made
    made.close()


def test_who_sends_a_byte_a_second_holds_nobody_but_itself_up(door, behind, slow, monkeypatch):
    monkeypatch.setattr(tls_proxy, "MAX_MESSAGES_PER_NODE", 3)
    a, b = door.member("a"), door.member("b")
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\nflwr-public-key: "
    for _ in range(tls_proxy.MAX_MESSAGES_PER_NODE):
        slow(head + key_of(a).encode() + b"\r\n\r\n")
    for _ in range(20):
        slow(b"POST /v1/fleet/push-object HTTP/1.1\r\nho", b"s")  # strangers who never get to their point
    wait_for(lambda: behind.fleet(a) == "E112")
    assert [behind.fleet(b) for _ in range(5)] == [200] * 5
    for each in slow.open[: tls_proxy.MAX_MESSAGES_PER_NODE]:
        each.sendall(b"y")
    assert behind.fleet(a) == "E112" and behind.fleet(b) == 200
    slow.close()
    wait_for(lambda: behind.fleet(a) == 200)


def test_a_question_of_health_waits_for_no_body(behind, slow):
    asking = slow(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n")
    assert asking.recv(100).startswith(b"HTTP/1.1 200")
    assert behind.seen[-1][1:3] == ("/health", b"")


def test_a_message_that_comes_too_slowly_is_given_up(door, behind, slow, monkeypatch):
    monkeypatch.setattr(tls_proxy, "SILENCE_S", 0.2)
    device = door.member("a")
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\nflwr-public-key: "
    sender = slow(head + key_of(device).encode() + b"\r\n\r\n")
    with contextlib.suppress(OSError):  # it may be hung up on in the middle
        for _ in range(40):
            threading.Event().wait(0.05)
            sender.sendall(b"y")
    assert b"E115" in sender.recv(4000) + sender.recv(4000), "its head and its body"
