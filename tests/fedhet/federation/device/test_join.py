"""Joining over real TLS: accepted and refused devices, with the error codes."""

import json
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import join, server_connection
from fedhet.federation.device.join import Data
from fedhet.federation.pki import certificates, tls
from fedhet.federation.pki.ca import Authority
from fedhet.federation.pki.invitation import Token
from fedhet.federation.server.client_names import check_name


def test_a_device_joins_waits_and_gets_a_certificate_of_its_own(door):
    name, line = door.invite("st-mary", device_class="silo")
    data = Data("/data/x", 120, 1, 3, {"0": 70, "1": 50})
    assert door.begin("dev", line, data)["state"] == "pending"
    device = door.device("dev")
    assert join.poll(device)["state"] == "pending"
    door.federation.approve("st-mary")
    told = join.poll(device)
    assert (told["state"], told["number"], told["name"]) == ("active", 0, name)
    assert device.leaf().not_after - door.clock() == pytest.approx(30 * 86400, abs=60)
    assert device.ask("whoami")["state"] == "active"
    client = door.federation.registry.client("st-mary")
    assert client.declared["labels"] == {"0": 70, "1": 50}
    assert (client.declared["examples"], client.partition, client.measured["step_us"]) == (120, 1, 900)
    assert "/data/x" not in json.dumps(client.to_dict())
    assert [row["action"] for row in door.federation.audit.rows()] == ["found", "invite", "enrol", "approve"]
    door.federation.audit.check()


def test_every_file_of_device_and_operator_is_private(door):
    device = door.member("a")
    for folder in (device.folder, door.federation.folder, door.federation.folder / "ca"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secret = [*device.folder.iterdir(), *door.federation.folder.rglob("*")]
    for path in [p for p in secret if p.is_file() and not p.name.startswith("registry.db-")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_secret_is_neither_stored_nor_logged(door, caplog, capfd):
    caplog.set_level("DEBUG")
    _, line = door.invite("a")
    secret = Token.parse(line).secret
    door.begin("dev", line)
    files = [p for p in door.folder.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert not [p for p in files if secret.encode() in p.read_bytes()]
    out = capfd.readouterr()
    assert secret not in caplog.text + out.out + out.err


def test_a_token_opens_once_and_its_own_device_may_knock_again(door, refused):
    _, line = door.invite("a")
    door.begin("one", line)
    assert door.begin("one", line)["state"] == "pending"  # as if the first answer had been lost
    refused("E102", door.begin, "two", line)
    door.federation.approve("a")
    refused("E102", door.begin, "two", line)


def test_of_devices_that_use_a_token_at_once_one_gets_in(door):
    _, line = door.invite("a")

    def attempt(n):
        try:
            return door.begin(f"dev-{n}", line)["state"]
        except EnrollError as error:
            return error.code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, range(4))) == ["E102", "E102", "E102", "pending"]


def test_an_expired_token_is_refused(door, refused):
    _, line = door.invite("a", hours=1)
    door.clock.ahead = 3700
    refused("E101", door.begin, "dev", line)


def test_five_wrong_secrets_lock_a_token_for_the_right_one_too(door, refused):
    _, line = door.invite("a")
    right = Token.parse(line)
    wrong = Token(right.endpoint, right.root, right.id, Token.new("x:1", right.root).secret).line
    codes = [refused("E106", door.begin, "dev", wrong).code for _ in range(4)]
    assert codes == ["E106"] * 4
    refused("E107", door.begin, "dev", wrong)
    refused("E107", door.begin, "dev", line)
    tries = [row for row in door.federation.audit.rows() if row["action"] == "refused"]
    assert len(tries) == 6
    unknown = Token(right.endpoint, right.root, "0" * 16, right.secret).line
    refused("E106", door.begin, "dev", unknown)


def test_an_address_that_fails_often_is_shut_out_for_an_hour(make_door, refused):
    door = make_door(failures_per_hour=3)
    _, line = door.invite("a")
    right = Token.parse(line)
    wrong = Token(right.endpoint, right.root, "0" * 16, right.secret).line
    for _ in range(3):
        refused("E106", door.begin, "dev", wrong)
    assert refused("E112", door.begin, "dev", line).data["seconds"] > 3500
    door.clock.ahead = 3601
    refused("E112", door.begin, "dev", line)  # whoever sets the clock changes nothing about how long ago it was
    door.clock.ahead, door.ticks.ahead = 0, 3601
    assert door.begin("dev", line)["state"] == "pending"


def test_requests_are_limited_by_the_minute(make_door, refused):
    door = make_door(requests_per_minute=3)
    url = f"https://127.0.0.1:{door.port}"
    for _ in range(3):
        server_connection.fetch_root(url, door.federation.authority.fingerprint)
    refused("E112", server_connection.fetch_root, url, door.federation.authority.fingerprint)


def test_a_server_with_another_root_never_gets_the_secret(door, tmp_path, listening, refused):
    heard = []

    async def anything(request):
        heard.append((request.url.path, await request.body(), dict(request.headers)))
        return JSONResponse({"root": certificates.text([theirs.root]).decode()})

    theirs = Authority.create(tmp_path / "mitm", "test", "127.0.0.1:1", ["127.0.0.1"], door.clock())
    _, token = door.federation.invite("a")
    app = Starlette(routes=[Route("/{path:path}", anything, methods=["GET", "POST"])])
    with listening(app, theirs.folder / "server.pem") as port:
        line = Token(f"127.0.0.1:{port}", token.root, token.id, token.secret).line
        refused("E103", door.begin, "dev", line)
    assert [path for path, _, _ in heard] == ["/v1/enroll/root"]
    assert token.secret not in repr(heard) and token.id not in repr(heard)
    assert not (tmp_path / "dev").exists()


def test_a_server_that_shows_the_right_root_without_its_key_never_gets_the_secret(door, tmp_path, listening, refused):
    heard = []

    async def anything(request):
        heard.append((request.url.path, await request.body()))
        return JSONResponse({"root": certificates.text([door.federation.authority.root]).decode()})

    theirs = Authority.create(tmp_path / "mitm", "test", "127.0.0.1:1", ["127.0.0.1"], door.clock())
    _, token = door.federation.invite("a")
    app = Starlette(routes=[Route("/{path:path}", anything, methods=["GET", "POST"])])
    with listening(app, theirs.folder / "server.pem") as port:
        line = Token(f"127.0.0.1:{port}", token.root, token.id, token.secret).line
        refused("E103", door.begin, "dev", line)
    assert heard == [("/v1/enroll/root", b"")]


def test_a_server_that_does_not_answer_is_named(door, refused):
    _, token = door.federation.invite("a")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        line = Token(f"127.0.0.1:{sock.getsockname()[1]}", token.root, token.id, token.secret).line
        refused("E307", door.begin, "dev", line)


def test_a_name_is_one_clients_until_it_is_gone(door, refused):
    door.member("a")
    refused("E104", door.invite, "a")
    _, line = door.invite("b")
    for other in ("a", "c"):
        assert "it is for b" in str(refused("E119", door.begin, "dev", line, name=other))
    assert door.begin("dev", line, name="b")["name"] == "b"  # the refusals did not use the token up
    door.federation.revoke("a", "lost")
    door.invite("a")
    assert [c.name for c in door.federation.registry.clients()] == ["a", "b", "a"]


@pytest.mark.parametrize(
    "name",
    [
        "-rf",
        "--reason",
        ".hidden",
        "_x",
        "",
        "a b",
        "a" * 64,
        "st-m\u0430ry",
        "\uff41",
        "a\u202eb",
        "a\n",
        "\x1b[2J",
        "0" * 32,
    ],
)
def test_a_name_is_plain_ascii_and_begins_with_a_letter_or_digit(door, refused, name):
    if name:
        refused("E117", door.invite, name)
    refused("E117", check_name, name)


@pytest.mark.parametrize(
    "other", ["ST-MARY-10", "st-mary-1O", "st-mary-l0", "st-mary-I0", "st-rnary-10", "St-rnary-lo"]
)
def test_a_name_that_looks_like_anothers_is_refused(door, refused, other):
    door.invite("st-mary-10")
    assert "looks like st-mary-10" in str(refused("E104", door.invite, other))
    door.federation.reject("st-mary-10", "left us")
    door.invite(other)


def test_an_invitation_that_was_not_taken_up_is_replaced(door, refused):
    _, first = door.invite("a")
    _, second = door.invite("a")
    refused("E106", door.begin, "dev", first)
    assert door.begin("dev", second)["number"] == 0


def test_a_partition_has_one_client(door, refused):
    door.member("a", Data(examples=5, partition=0, partitions=2))
    _, line = door.invite("b")
    refused("E116", door.begin, "b", line, Data(examples=5, partition=0, partitions=2))


def test_a_rejected_device_gets_the_reason(door, refused):
    _, line = door.invite("a")
    door.begin("dev", line)
    door.federation.reject("a", "not ours")
    assert "not ours" in str(refused("E109", join.poll, door.device("dev")))


def test_classes_that_need_no_approval_are_let_in_at_once(make_door):
    door = make_door(auto_approve=("edge",))
    _, line = door.invite("a")
    assert door.begin("dev", line)["state"] == "active"
    assert door.device("dev").ask("whoami")["name"] == "a"
    _, line = door.invite("b", device_class="silo")
    assert door.begin("silo", line)["state"] == "pending"


def test_a_machine_below_the_class_minimum_or_with_an_old_version_is_refused(make_door, refused, monkeypatch):
    door = make_door(min_memory_bytes={"edge": 2**60}, min_version="0.0.9")
    _, line = door.invite("a")
    refused("E302", door.begin, "dev", line)
    monkeypatch.setattr("fedhet.__version__", "0.0.8")
    refused("E301", door.begin, "dev", line)


@pytest.mark.parametrize("ahead, code", [(80, "E203"), (-80, "E203"), (40, None), (-40, None)])
def test_a_clock_that_is_off_is_named_with_its_seconds(door, refused, ahead, code):
    _, line = door.invite("a")

    def turned():
        return door.clock() + ahead

    if code:
        error = refused(code, door.begin, "dev", line, clock=turned)
        assert 60 < abs(error.data["seconds"]) < 100
    else:
        assert door.begin("dev", line, clock=turned)["state"] == "pending"


def test_a_body_whose_parts_do_not_belong_together_is_refused(door, monkeypatch, refused):
    def altered(change):
        real = join.Link.call

        def call(self, method, path, body=b"", headers=None):
            return real(self, method, path, json.dumps(change(json.loads(body))).encode() if body else b"", headers)

        return call

    _, line = door.invite("a")
    door.begin("other", door.invite("b")[1])
    other = door.device("other")
    swaps = {
        "E111": lambda b: {**b, "csr": other.request().decode()},
        "E115": lambda b: {k: v for k, v in b.items() if k != "public"},
    }
    for code, change in swaps.items():
        with monkeypatch.context() as patch:
            patch.setattr(join.Link, "call", altered(change))
            refused(code, door.begin, "dev", line)
    assert door.begin("dev", line)["state"] == "pending"


def test_a_replayed_application_is_refused(door, monkeypatch, refused):
    sent = []
    real = join.Link.call

    def call(self, method, path, body=b"", headers=None):
        sent.append(body)
        return real(self, method, path, body, headers)

    monkeypatch.setattr(join.Link, "call", call)
    _, line = door.invite("a")
    door.begin("dev", line)
    with door.device("dev").link() as again:
        refused("E204", again.call, "POST", "/v1/enroll/join", sent[-1])


def test_large_and_malformed_bodies_get_a_code(door, refused):
    root = server_connection.fetch_root(f"https://127.0.0.1:{door.port}", door.federation.authority.fingerprint)
    with server_connection.Link(f"https://127.0.0.1:{door.port}", root) as connection:
        refused("E113", connection.call, "POST", "/v1/enroll/join", b"x" * 70_000)
        for body in (b"", b"[]", b"\xff", b"[" * 60_000, b'{"public": 3}', b'{"public": "", "flower_public": "ssh"}'):
            refused("E115", connection.call, "POST", "/v1/enroll/join", body)
        refused("E210", connection.call, "POST", "/v1/enroll/poll", b'{"node": "nobody"}')

    def endless():
        for _ in range(100):
            yield b"x" * 1000

    url = f"https://127.0.0.1:{door.port}/v1/enroll/join"
    with httpx.Client(verify=tls.trusting(root), trust_env=False) as client:
        assert client.post(url, content=endless()).json()["code"] == "E113"


def test_waiting_ends_with_the_operators_word(door, refused):
    _, line = door.invite("a")
    door.begin("dev", line)
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            door.federation.approve("a")

    assert join.wait(door.device("dev"), 600, nap)["state"] == "active"
    assert naps == [5.0, 5.0]
    door.begin("other", door.invite("b")[1])
    refused("E105", join.wait, door.device("other"), 1.0, nap)


def test_the_door_answers_many_at_once(door):
    errors = []

    def many():
        try:
            server_connection.fetch_root(f"https://127.0.0.1:{door.port}", door.federation.authority.fingerprint)
        except EnrollError as error:
            errors.append(error)

    threads = [threading.Thread(target=many) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
