"""Rate limits: by address for unenrolled peers, by client for enrolled ones, and which proxy's addresses are
trusted."""

import json

import httpx
import pytest

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import join
from fedhet.federation.pki import signed_requests
from fedhet.federation.pki.invitation import Token
from fedhet.federation.pki.tls import trusting
from fedhet.federation.server import rate_limits
from fedhet.federation.server.peer_addresses import Proxies, bucket
from fedhet.federation.server.rate_limits import Window


def wrong(line):
    token = Token.parse(line)
    return Token(token.endpoint, token.root, "0" * 16, token.secret).line


def test_those_who_fail_behind_an_address_do_not_lock_out_the_clients_there(make_door, refused):
    door = make_door(failures_per_hour=3, requests_per_minute=20)
    device, (_, line) = door.member("a"), door.invite("b")
    door.begin("waits", line)
    for _ in range(3):
        refused("E106", door.begin, "stranger", wrong(line))
    refused("E112", door.begin, "stranger", wrong(line))
    with device.link() as link:
        for _ in range(22):  # nor do requests by the minute
            body = {"node": "nobody"}
            with pytest.raises(EnrollError, match=r"E210|E112"):
                link.call("POST", "/v1/enroll/poll", json.dumps(body).encode())
    assert device.ask("whoami")["state"] == "active"
    assert join.poll(door.device("waits"))["state"] == "pending"
    before = device.leaf().serial
    device.renew()
    assert device.leaf().serial != before


def test_a_client_that_fails_is_held_to_it_by_itself(make_door, refused):
    door = make_door(failures_per_hour=3)
    bad, good = door.member("bad"), door.member("good")
    for _ in range(3):
        refused("E115", bad.ask, "renew", {"csr": "nothing"})
    refused("E112", bad.ask, "whoami")
    assert good.ask("whoami")["state"] == "active"
    assert door.begin("new", door.invite("new")[1])["state"] == "pending", "and its address is not"


def test_malformed_requests_count_as_failures_of_their_address(make_door, refused):
    door = make_door(failures_per_hour=4)
    _, line = door.invite("a")
    url = f"https://127.0.0.1:{door.port}/v1/enroll/"
    with httpx.Client(verify=trusting((door.federation.folder / "ca" / "root.pem").read_bytes())) as client:
        sent = [("join", b"{"), ("poll", b"[]"), ("renew", b"{}"), ("join", b'{"public": NaN}')]
        answers = [client.post(url + where, content=body) for where, body in sent]
    assert [each.json()["code"] for each in answers] == ["E115"] * 4
    assert all(each.headers["connection"] == "close" for each in answers)
    refused("E112", door.begin, "dev", line)


def test_requests_that_no_path_takes_count_as_failures_of_their_address(make_door, refused):
    door = make_door(failures_per_hour=4)
    device, (_, line) = door.member("a"), door.invite("b")
    url = f"https://127.0.0.1:{door.port}/"
    with httpx.Client(verify=trusting((door.federation.folder / "ca" / "root.pem").read_bytes())) as client:
        sent = [("GET", "wp-login.php"), ("POST", "v1/enroll/nothing"), ("PUT", "v1/enroll/join")]
        answers = [client.request(*each) for each in [(method, url + path) for method, path in sent]]
        answers.append(client.post(url + "v1/enroll/speed/many"))
        again = client.get(url)
    assert [(each.status_code, each.json()["code"]) for each in answers] == [
        *((404, "E120"), (404, "E120"), (405, "E121"), (400, "E115"))
    ]
    assert all(each.headers["connection"] == "close" and each.json()["remedy"] for each in answers)
    assert (again.status_code, again.json()["code"]) == (429, "E112")
    refused("E112", door.begin, "dev", line)
    assert device.ask("whoami")["state"] == "active", "an enrolled device behind it goes on"


def test_a_body_that_somebody_else_sealed_counts_for_the_address_not_the_client(make_door, refused):
    door = make_door(failures_per_hour=2)
    device = door.member("a")
    headers = device.sealed("POST", "/v1/enroll/whoami", b"{}")
    with device.link() as link:
        for _ in range(2):
            refused("E205", link.call, "POST", "/v1/enroll/whoami", b"{} ", headers)
        refused("E112", link.call, "POST", "/v1/enroll/whoami", b"{} ", headers)
    assert device.ask("whoami")["state"] == "active"


def test_a_window_is_bounded_and_strangers_push_no_client_out(monkeypatch):
    monkeypatch.setattr(rate_limits, "MAX_KEYS", 100)
    window = Window(2, 60.0)
    for n in range(100_000):
        window.check(f"never failed {n}", 0.0)
    assert not window._seen
    for n in range(300):
        window.add(str(n), 0.0)
    assert len(window._seen) == 100
    window.add("299", 0.0)
    for _ in range(2):
        with pytest.raises(EnrollError, match="wait 31 s"):
            window.check("299", 30.0)
    window.check("299", 60.0)
    window.check("299", -5.0)  # the clock was set back


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("\x1b[31mred", "anything", True),
    ],
)
def test_one_subscriber_is_one_address(a, b, same):
    assert (bucket(a) == bucket(b)) is same


@pytest.mark.parametrize(
    "trusted, peer, forwarded, client",
    [
        ([], "127.0.0.1", ["203.0.113.9"], "127.0.0.1"),
        (["127.0.0.1"], "198.51.100.7", ["203.0.113.9"], "198.51.100.7"),
        (["127.0.0.1"], "127.0.0.1", ["10.0.0.1, 203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1", "10.0.0.0/8"], "127.0.0.1", ["1.1.1.1, 203.0.113.9", "10.0.0.1"], "203.0.113.9"),
        (["127.0.0.1"], "127.0.0.1", ["203.0.113.9, \x1b[2J"], "127.0.0.1"),
        (["127.0.0.1"], "127.0.0.1", ["unknown", "203.0.113.9:4711"], "203.0.113.9"),
        (["::1"], "::1", ["[2001:db8::1]:443"], "2001:db8::1"),
        (["127.0.0.1"], "::ffff:127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1"], "127.0.0.1", [], "127.0.0.1"),
        (["0.0.0.0/0"], "127.0.0.1", [", ".join(["1.1.1.1"] * 99)], "1.1.1.1"),
    ],
)
def test_a_forwarded_address_is_the_last_that_trusted_proxies_named(trusted, peer, forwarded, client):
    assert Proxies.parse(trusted).client(peer, forwarded) == client


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.1/8", "", "*"])
def test_a_proxy_is_an_address_or_a_network(text):
    with pytest.raises(EnrollError, match=r"E319.*trusted-proxy"):
        Proxies.parse([text])


@pytest.mark.parametrize("trusted, told", [((), "127.0.0.1"), (("127.0.0.0/8",), "203.0.113.9")])
def test_the_door_believes_its_proxies_alone(door, guarded, trusted, told):
    async def who(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["client"][0].encode()})

    with (
        guarded(who, door.federation.folder / "ca" / "server.pem", proxies=Proxies.parse(trusted)) as (port, _),
        httpx.Client(verify=trusting((door.federation.folder / "ca" / "root.pem").read_bytes())) as client,
    ):
        headers = {"x-forwarded-for": "192.0.2.1, 203.0.113.9", "x-real-ip": "192.0.2.2", "forwarded": "for=192.0.2.3"}
        assert client.get(f"https://127.0.0.1:{port}/", headers=headers).text == told


def test_a_limit_by_identity_needs_the_signature_of_that_identity(make_door):
    """Polls about another's node id, signed by a key of one's own, use up one's address and not the other."""
    door = make_door(failures_per_hour=2)
    _, line = door.invite("a")
    door.begin("victim", line)
    door.begin("thief", door.invite("b")[1])
    victim, thief = door.device("victim"), door.device("thief")
    body = signed_requests.sign_body(thief.identity, "poll", {"node": victim.identity.node_id}, door.clock())
    with thief.link() as link:
        for code in ("E111", "E111", "E112"):
            with pytest.raises(EnrollError, match=code):
                link.call("POST", "/v1/enroll/poll", json.dumps(body).encode())
    assert join.poll(victim)["state"] == "pending"
