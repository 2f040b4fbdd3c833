"""Malformed request bodies: the answer is always a refusal with a code, never an internal error."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fedhet.federation.device import join
from fedhet.federation.device.state import Device
from fedhet.federation.pki import canonical_json, certificates, signed_requests
from fedhet.federation.server.http_api import service
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.policy import Policy

MEASURED = {"step_us": 900, "step_iqr_us": 40, "repeats": 9, "batch": 32, "noisy": 0}
UNLIMITED = Policy(failures_per_hour=10**9, requests_per_minute=10**9)
HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.text(max_size=20)
    | st.sampled_from(["", "\x00", "\u202e", "²", "9" * 5000, "1." * 2000, "ecdsa-sha2-nistp256 AAAA", "-" * 70_000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("public", "flower_public", "csr", "version", "name", "profile", "token", "secret", "node", "time", "nonce")
SOME = settings(
    derandomize=True, deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The service, a device that is a member of it, and a well-formed application to join."""
    folder = tmp_path_factory.mktemp("malformed")
    federation = Federation.create(folder / "op", "test", "127.0.0.1:1", policy=UNLIMITED)
    device = join.prepare(folder / "dev", join.Data(examples=5))
    _, token = federation.invite("a")
    body = join.application(device, name="", measured=MEASURED)
    signed = signed_requests.sign_body(
        device.identity, "enrol", {**body, "token": token.id, "secret": token.secret}, 0 + now()
    )
    with TestClient(service(federation)) as client:
        assert client.post("/v1/enroll/join", content=json.dumps(signed)).json()["state"] == "pending"
        federation.approve("a")
        told = client.post("/v1/enroll/poll", content=poll(device)).json()
        device.note(endpoint="127.0.0.1:1")
        (device.folder / "root.pem").write_bytes(certificates.text([federation.authority.root]))
        (device.folder / "root.pem").chmod(0o600)
        join.store_answer(device, told)
        yield client, device, body
    federation.close()


def now():
    return Device.__init__.__defaults__[0]()


def poll(device, **more):
    return json.dumps(
        signed_requests.sign_body(device.identity, "poll", {"node": device.identity.node_id, **more}, now())
    )


def refused(answer):
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["code"].startswith("E")


def post(client, path, content, headers=None):
    return client.post(f"/v1/enroll/{path}", content=content, headers=headers)


RAW = st.one_of(
    st.binary(max_size=200),
    HOSTILE.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), HOSTILE).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [
            b"[" * 60_000,
            b'{"a":' * 900 + b"1" + b"}" * 900,
            b'{"node": NaN}',
            b'{"time": 1e999, "node": Infinity}',
            b'{"node": ' + b"9" * 5000 + b"}",
            b'{"node": "a", "node": "b"}',
            b'{"node": "\\ud800"}',
            b'{"token": "\\udfff", "secret": "\\ud800"}',
            '{"node": "a"}'.encode("utf-16"),
            '{"node": "\u00e9"}'.encode("latin-1"),
            b"\xef\xbb\xbf{}",
            b"",
        ]
    ),
)


@SOME
@given(st.sampled_from(["join", "poll"]), RAW)
def test_bytes_of_any_kind(place, path, content):
    refused(post(place[0], path, content))


@SOME
@given(st.sampled_from(["renew", "rotate", "profile"]), RAW)
def test_bytes_of_any_kind_under_a_seal_that_holds(place, path, content):
    client, device, _ = place
    headers = device.sealed("POST", f"/v1/enroll/{path}", content)
    refused(post(client, path, content, headers))


@SOME
@given(st.dictionaries(st.sampled_from(FIELDS), HOSTILE, min_size=1, max_size=3), st.booleans())
def test_well_signed_applications_with_anything_in_them(place, fields, keep_key):
    client, device, body = place
    signed = {
        **signed_requests.sign_body(device.identity, "enrol", {**body, "token": "0" * 16, "secret": ""}, now()),
        **fields,
    }
    if keep_key and "public" in signed:
        signed["public"] = body["public"]
    rest = {key: value for key, value in signed.items() if key != "signature"}
    signed["signature"] = canonical_json.b64(device.identity.sign("fedhet.enrol.v1", canonical_json.canonical(rest)))
    refused(post(client, "join", json.dumps(signed)))


@SOME
@given(st.sampled_from([("renew", "csr"), ("rotate", "public"), ("rotate", "csr"), ("profile", "declared")]), HOSTILE)
def test_well_signed_requests_of_a_member_with_anything_in_them(place, where, value):
    client, device, body = place
    path, field = where
    node = device.identity.node_id
    full = {"csr": body["csr"], "public": body["public"], "flower_public": body["flower_public"], "proof": ""}
    full |= {"node": node, "declared": {}, "measured": {}, field: value}
    content = json.dumps(signed_requests.sign_body(device.identity, path, full, now())).encode()
    headers = device.sealed("POST", f"/v1/enroll/{path}", content)
    answer = post(client, path, content, headers)
    if answer.status_code != 200:  # an empty profile is one
        refused(answer)


@SOME
@given(
    st.dictionaries(
        st.sampled_from(
            [signed_requests.CERTIFICATE, signed_requests.TIME, signed_requests.NONCE, signed_requests.SIGNATURE]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
        | st.sampled_from(["9" * 5000, "-1", "1e9", "AAAA", "MAA=", "nan", "0" * 32]),
        max_size=4,
    )
)
def test_seals_of_any_kind(place, headers):
    client, device, _ = place
    good = device.sealed("POST", "/v1/enroll/whoami", b"{}")
    refused(post(client, "whoami", b"{}", {**good, **headers} if headers else {}))


@pytest.mark.parametrize("when", [10**18, -(10**18), True, "1" * 4000, "٣", None, [], 1.5])
def test_a_time_that_is_none_is_malformed(place, when):
    client, device, _ = place
    body = {"node": device.identity.node_id, "time": when, "nonce": "0" * 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canonical_json, "_check", lambda value: None)  # a float, which we would not sign
        signature = device.identity.sign("fedhet.poll.v1", canonical_json.canonical(body))
    refused(post(client, "poll", json.dumps({**body, "signature": canonical_json.b64(signature)})))


@pytest.mark.parametrize("size", ["x", "-1", "9" * 5000, "1e3", "%00"])
def test_a_size_that_is_none(place, size):
    client, device, _ = place
    path = f"/v1/enroll/speed/{size}"
    answer = client.post(path, content=b"", headers=device.sealed("POST", path, b""))
    assert 400 <= answer.status_code < 500


def test_a_parse_has_one_meaning():
    assert canonical_json.parse('{"a": [1, null, true, "\u00e9"]}'.encode()) == {"a": [1, None, True, "é"]}
    for text in (b'{"a":1,"a":1}', b"1.0", b"NaN", b"1e3", b"12345678901234567890", b'"\\udc00"', b"\xff", b"[" * 40):
        with pytest.raises(ValueError):
            canonical_json.parse(text)


@pytest.mark.parametrize(
    "line", ["unknown AAAA", "ecdsa-sha2-nistp384 AAAA", "ssh-dss AAAA", "\x00 \x1b[2J", "{own} comment"]
)
def test_a_node_key_that_is_none_is_malformed(place, line):
    client, device, body = place
    full = {**body, "token": "0" * 16, "secret": "", "flower_public": line.format(own=body["flower_public"])}
    answer = post(client, "join", json.dumps(signed_requests.sign_body(device.identity, "enrol", full, now())))
    assert (answer.status_code, answer.json()["code"]) == (400, "E115")
