"""Attacks on the public port that no other file covers: each is refused with its own code."""

import json
import socket
import ssl

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedhet.federation.device import join
from fedhet.federation.device.server_connection import Link
from fedhet.federation.pki import identity, signed_requests, tls
from fedhet.federation.pki.canonical_json import b64
from fedhet.federation.pki.tls import trusting
from fedhet.federation.server import authentication

ANYBODY = bytes([1]) + bytes(63)
"""A signature that low-order keys accept over many messages, made without any key."""


@pytest.mark.parametrize("sign_bit", [0, 0x80])
@pytest.mark.parametrize("y", sorted(identity.LOW_ORDER), ids=lambda y: y.hex()[:4])
def test_a_key_for_which_anybody_can_sign_is_no_key(y, sign_bit):
    public = y[:31] + bytes([y[31] | sign_bit])
    assert not any(identity.verify(public, ANYBODY, "domain", bytes([n])) for n in range(64))


def test_a_device_cannot_join_with_such_a_key(door, monkeypatch, refused):
    real = join.Link.call

    def call(self, method, path, body=b"", headers=None):
        if body:
            given = {**json.loads(body), "public": b64(bytes([1]) + bytes(31)), "signature": b64(ANYBODY)}
            body = json.dumps(given).encode()
        return real(self, method, path, body, headers)

    _, line = door.invite("a")
    with monkeypatch.context() as patch:
        patch.setattr(join.Link, "call", call)
        refused("E111", door.begin, "dev", line)
    assert door.begin("dev", line)["state"] == "pending", "and the token was not used up"


def test_a_certificate_that_is_not_valid_yet_is_refused(door, refused):
    device = door.member("a")
    door.clock.ahead = -300
    refused("E207", device.ask, "whoami")


def test_plaintext_gets_no_answer(door):
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{door.port}/v1/enroll/root", trust_env=False)


def test_a_server_with_a_certificate_for_another_name_is_not_believed(door, refused):
    _, line = door.invite("a")
    wrong = line.replace("127.0.0.1:", "localhost:")
    body = wrong.rsplit(".", 1)[0]
    from fedhet.federation.pki.invitation import _checksum

    refused("E103", door.begin, "dev", f"{body}.{_checksum(body)}")


def test_a_sealed_request_of_one_client_is_worth_nothing_with_the_name_of_another(door, refused):
    a, b = door.member("a"), door.member("b")
    body = json.dumps(
        signed_requests.sign_body(b.identity, "renew", {"csr": b.request().decode()}, door.clock())
    ).encode()
    headers = a.sealed("POST", "/v1/enroll/renew", body)
    with Link(a.url, trusting((a.folder / "root.pem").read_bytes())) as connection:
        refused("E111", connection.call, "POST", "/v1/enroll/renew", body, headers)
    assert b.ask("whoami")["serial"] == b.leaf().serial


def test_a_client_revoked_between_handshake_and_request_is_refused(door, refused):
    device = door.member("a")
    with device.link() as connection:
        headers = device.sealed("POST", "/v1/enroll/whoami", b"{}")
        connection.call("POST", "/v1/enroll/whoami", b"{}", headers)
        door.federation.revoke("a", "stolen")
        headers = device.sealed("POST", "/v1/enroll/whoami", b"{}")
        refused("E202", connection.call, "POST", "/v1/enroll/whoami", b"{}", headers)


def test_a_self_made_certificate_ends_in_the_registry_whatever_it_says(door, refused):
    """Even one of the federation's own issuing key, for a client that exists, with a key of the thief's."""
    device, key = door.member("a"), identity.new_tls_key()
    from fedhet.federation.pki import certificates

    csr = certificates.request(key, device.identity.node_id)
    chain, _ = door.federation.authority.issue(csr, device.identity.node_id, 7.0, door.clock())
    der = x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER)
    headers = signed_requests.seal(key, der, "POST", "/v1/enroll/leave", b"{}", door.clock())
    refused("E208", authentication.authenticate, door.federation, headers, "POST", "/v1/enroll/leave", b"{}")
    assert door.federation.registry.client("a").state == "active"


def test_old_tls_is_refused(door):
    context = tls.trusting((door.federation.folder / "ca" / "root.pem").read_bytes())
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", door.port)) as sock, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(sock, server_hostname="127.0.0.1")
