"""Clients and their certificates: renewal, suspension, revocation, leaving, and false requests."""

import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedhet.federation.pki import certificates, identity, profile_claim, signed_requests
from fedhet.federation.pki.certificates import DAY, URN
from fedhet.federation.server import authentication, client_profiles


def sealed(device, path="/v1/enroll/whoami", body=b"{}", clock=None):
    key = identity.load_ec_key((device.folder / "client.pem").read_bytes())
    der = x509.load_pem_x509_certificates((device.folder / "client.pem").read_bytes())[0].public_bytes(Encoding.DER)
    return signed_requests.seal(key, der, "POST", path, body, (clock or device.clock)())


def authenticate(door, headers, path="/v1/enroll/whoami", body=b"{}", **given):
    return authentication.authenticate(door.federation, headers, "POST", path, body, **given)


def test_a_certificate_is_renewed_with_a_new_key_and_the_old_one_holds_until_it_expires(door):
    device = door.member("a")
    old, before = device.leaf(), (device.folder / "client.pem").read_bytes()
    door.clock.ahead = 5 * DAY
    new = device.renew()
    assert new.serial != old.serial and new.public != old.public
    assert new.not_after - old.not_after == pytest.approx(5 * DAY, abs=30)
    assert device.ask("whoami")["serial"] == new.serial
    (device.folder / "client.pem").write_bytes(before)
    assert device.ask("whoami")["state"] == "active"


def test_a_renewal_whose_answer_was_lost_gives_the_same_certificate_again(door):
    device = door.member("a")
    csr = device.request().decode()
    body = [signed_requests.sign_body(device.identity, "renew", {"csr": csr}, device.clock()) for _ in range(2)]
    assert device.ask("renew", body[0])["serial"] == device.ask("renew", body[1])["serial"]


def test_an_expired_certificate_may_renew_within_the_grace_time_and_do_nothing_else(door, refused):
    device = door.member("a")
    door.clock.ahead = 8 * DAY
    refused("E201", device.ask, "whoami")
    refused("E201", device.ask, "leave")
    device.renew()
    assert device.ask("whoami")["state"] == "active"
    door.clock.ahead = 23 * DAY
    refused("E209", device.renew)


def test_revocation_holds_from_the_next_message_on(door, refused):
    device = door.member("a")
    assert device.ask("whoami")["state"] == "active"
    serial = device.leaf().serial
    door.federation.revoke("a", "key compromise")
    assert "key compromise" in str(refused("E202", device.ask, "whoami"))
    refused("E202", device.renew)
    crl = x509.load_pem_x509_crl(door.federation.crl())
    assert [f"{row.serial_number:040x}" for row in crl] == [serial]
    issuing = x509.load_pem_x509_certificate((door.federation.folder / "ca" / "issuing.pem").read_bytes())
    assert crl.is_signature_valid(issuing.public_key())
    refused("E211", door.federation.resume, "a")


def test_suspension_shuts_out_until_it_is_lifted(door, refused):
    device = door.member("a")
    door.federation.suspend("a", "audit")
    refused("E206", device.ask, "whoami")
    refused("E206", device.renew)
    door.federation.resume("a")
    assert device.ask("whoami")["state"] == "active"


def test_who_left_is_gone(door, refused):
    device = door.member("a")
    assert device.ask("leave")["state"] == "left"
    refused("E212", device.ask, "whoami")
    assert door.federation.registry.denied(door.clock())
    assert door.invite("a")[0] == "a"


def test_a_request_cannot_be_replayed_redirected_or_changed(door, refused):
    device = door.member("a")
    headers = sealed(device)
    authenticate(door, headers)
    refused("E204", authenticate, door, headers)
    refused("E205", authenticate, door, sealed(device), path="/v1/enroll/leave")
    refused("E205", authenticate, door, sealed(device), body=b'{"x":1}')
    refused("E205", authentication.authenticate, door.federation, sealed(device), "GET", "/v1/enroll/whoami", b"{}")
    for name in signed_requests.CERTIFICATE, signed_requests.TIME, signed_requests.NONCE, signed_requests.SIGNATURE:
        refused("E115", authenticate, door, {k: v for k, v in sealed(device).items() if k != name})
    refused("E205", authenticate, door, {**sealed(device), signed_requests.NONCE: "0" * 32})


def test_a_replay_is_remembered_for_as_long_as_its_time_would_pass(door, refused):
    device = door.member("a")
    headers = sealed(device)
    authenticate(door, headers)
    door.clock.ahead = 50
    refused("E204", authenticate, door, headers)
    door.clock.ahead = 62
    refused("E203", authenticate, door, headers)


def test_a_certificate_without_its_key_or_of_another_maker_is_worth_nothing(door, refused):
    device, other = door.member("a"), door.member("b")
    mixed = {**sealed(other), signed_requests.CERTIFICATE: sealed(device)[signed_requests.CERTIFICATE]}
    refused("E205", authenticate, door, mixed)
    key, node = identity.new_tls_key(), device.identity.node_id
    own = certificates.authority("me", key, 7.0, door.clock(), 0)
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URN + node)])
    made = certificates.leaf(key.public_key(), name, False, 7.0, door.clock(), (own, key))
    headers = signed_requests.seal(
        key, made.public_bytes(Encoding.DER), "POST", "/v1/enroll/whoami", b"{}", door.clock()
    )
    refused("E208", authenticate, door, headers)


def test_a_certificate_that_a_stolen_issuing_key_signed_is_not_in_the_registry(door, refused):
    device, key = door.member("a"), identity.new_tls_key()
    csr = certificates.request(key, device.identity.node_id)
    chain, _ = door.federation.authority.issue(csr, device.identity.node_id, 7.0, door.clock())
    der = x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER)
    headers = signed_requests.seal(key, der, "POST", "/v1/enroll/whoami", b"{}", door.clock())
    assert "registry" in str(refused("E208", authenticate, door, headers))


def test_the_error_for_a_wrong_device_clock_has_the_difference(door, refused):
    device = door.member("a")
    error = refused("E203", authenticate, door, sealed(device, clock=lambda: door.clock() - 412))
    assert error.data["seconds"] in (412, 413)
    assert "behind" in error.detail


def test_old_and_new_certificates_hold_through_a_change_of_the_issuing_key(door):
    first = door.member("a")
    door.federation.authority.rotate(door.clock())
    second = door.member("b")
    assert first.ask("whoami")["name"] == "a"
    assert second.ask("whoami")["name"] == "b"
    first.renew()
    assert first.ask("whoami")["name"] == "a"


def test_a_claim_is_replaced_by_its_own_device_only(door, refused):
    device, other = door.member("a"), door.member("b")
    claim = profile_claim.make(device.identity, {"examples": 7}, {"step_us": 5}, door.clock())
    refused("E303", other.ask, "profile", claim)
    refused("E303", device.ask, "profile", {**claim, "declared": {"examples": 8}})
    device.ask("profile", claim)
    refused("E204", device.ask, "profile", claim)
    assert door.federation.registry.client("a").declared == {"examples": 7}
    future = profile_claim.make(device.identity, {"examples": 9}, {}, door.clock() + 120)
    refused("E203", device.ask, "profile", future)


BAD_COLUMNS = [
    {"examples": -1}, {"examples": "7"}, {"examples": 2**60}, {"partition": 1.5}, {"labels": {"a": "b"}},
    {"unknown": 1}, {"gpu": 3}, {"gpu": "x" * 201},
]  # fmt: skip


@pytest.mark.parametrize("column", BAD_COLUMNS)
def test_a_claim_of_other_fields_or_kinds_is_refused(door, tmp_path, refused, column):
    own = identity.Identity.create(tmp_path / "own")
    refused("E303", profile_claim.make, own, column, {}, 0)


def test_the_scheduler_believes_observation_over_measurement(door):
    door.member("a")
    registry = door.federation.registry
    assert client_profiles.believed(registry.client("a")).sec_per_step == pytest.approx(0.0009)
    registry.observe(0, sec_per_step=0.02, finished=4)
    registry.observe(0, finished=5)
    client = registry.client("a")
    assert client_profiles.believed(client).sec_per_step == 0.02
    assert client.observed == {"sec_per_step": 0.02, "finished": 5}
    assert "observed 0.02" in client_profiles.doubtful(client)
    assert json.dumps(client.to_dict())


def test_two_processes_share_one_registry_file(door):
    from fedhet.federation.server.operator import Federation

    door.begin("dev", door.invite("a")[1])
    second = Federation(door.federation.folder, door.clock)
    second.approve("a", actor="other process")
    assert door.federation.registry.client("a").state == "active"
    second.close()
    with door.federation.registry._engine.connect() as connection:
        pragma = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert pragma == ["wal", 2]
