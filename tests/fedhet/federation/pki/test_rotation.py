"""Keys of a device and of the root are replaced while the federation runs; access of owners and nodes to keys."""

import contextlib
import shutil
import time

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import join, offline_join
from fedhet.federation.pki import certificates, identity, signed_requests, tls
from fedhet.federation.pki.ca import ISSUING_DAYS, Authority
from fedhet.federation.pki.canonical_json import b64
from fedhet.federation.pki.certificates import DAY
from fedhet.federation.server import admission, authentication, offline_approval
from fedhet.federation.server import superlink as flower
from fedhet.federation.server.http_api import service
from fedhet.federation.server.membership import Members
from fedhet.flower import socket_files
from fedhet.flower.fleet_api import forget


def test_a_device_with_new_keys_is_the_same_client_and_its_old_keys_are_worth_nothing(door, refused, tmp_path):
    device = door.member("a")
    shutil.copytree(device.folder, tmp_path / "thief")
    old, before = device.identity, door.federation.registry.client("a")
    door.federation.registry.set_flower_node(before.number, "77")
    leaf = device.rotate()
    now = door.federation.registry.client("a")
    assert (now.number, now.name, now.client_id) == (before.number, before.name, before.client_id)
    assert now.node == leaf.node == device.identity.node_id == device.about["node"] != old.node_id
    assert now.flower_public == device.identity.flower_public != before.flower_public
    assert device.ask("whoami")["state"] == "active"
    thief = join.Device(tmp_path / "thief", door.clock)
    refused("E208", thief.ask, "whoami")
    refused("E208", authentication.fleet_key, door.federation, old.flower_public)
    assert now.flower_node is None and door.federation.registry.retired() == ["77"]
    members = Members(door.federation.folder, door.clock)
    assert members.now()[now.client_id].public == device.identity.public
    members.close()
    assert {row["action"] for row in door.federation.audit.rows()} >= {"rotate"}


class Link:
    """A SuperLink as `reconcile` sees it."""

    def __init__(self):
        self.nodes, self.calls = {"77"}, []

    def register(self, line, name, known):
        self.calls.append(("register", name))
        return "78"

    def unregister(self, node):
        self.calls.append(("unregister", node))
        self.nodes.discard(node)


def test_the_superlink_gets_the_new_key_and_loses_the_old_node(door):
    device = door.member("a")
    door.federation.registry.set_flower_node(0, "77")
    device.rotate()
    superlink = Link()
    flower.reconcile(door.federation, superlink)
    assert superlink.calls == [("unregister", "77"), ("register", "a")]
    assert door.federation.registry.client("a").flower_node == "78" and door.federation.registry.retired() == []
    assert flower.reconcile(door.federation, superlink) == []


def test_keys_that_are_replaced_while_the_superlink_learns_the_old_ones_are_learned_next(door):
    device, superlink = door.member("a"), Link()
    lines = []

    def register(line, name, known):
        lines.append(line)
        if len(lines) == 1:
            device.rotate()
        return str(80 + len(lines))

    superlink.register = register
    flower.reconcile(door.federation, superlink)
    flower.reconcile(door.federation, superlink)
    assert superlink.calls == [("unregister", "81")], "the old key's node"
    assert lines[1] == device.identity.flower_public != lines[0]
    assert door.federation.registry.client("a").flower_node == "82"


@pytest.mark.parametrize("at", ["before", "after", "settling"])
def test_an_interrupted_rotation_is_finished_by_the_next_one(door, monkeypatch, at):
    device = door.member("a")
    old = device.identity.node_id

    class Cut(Exception):
        pass

    with monkeypatch.context() as patch:
        if at == "settling":
            patch.setattr(type(device), "note", lambda *_, **__: (_ for _ in ()).throw(Cut()))
        else:
            ask = type(device).ask

            def cut(self, what, body=None):
                if at == "after":
                    ask(self, what, body)
                raise Cut

            patch.setattr(type(device), "ask", cut)
        with pytest.raises(Cut):
            device.rotate()
    if at == "settling":
        device.install_new_keys()
    else:
        device.rotate()
    assert device.ask("whoami")["state"] == "active"
    assert device.identity.node_id == device.about["node"] != old
    assert not (device.folder / "next").exists()
    assert sum(row["action"] == "rotate" for row in door.federation.audit.rows()) == 1


def test_only_the_client_itself_rotates_and_only_to_a_key_it_has(door, refused, tmp_path):
    a, b = door.member("a"), door.member("b")
    stranger = identity.Identity.create(tmp_path / "new")

    def ask(device, own, proof_by=stranger, public=stranger.public, line=stranger.flower_public, node=None):
        csr = certificates.request(identity.new_tls_key(), node or stranger.node_id)
        proof = proof_by.sign(identity.ROTATION, device.identity.node_id.encode(), csr)
        keys = {"public": b64(public), "flower_public": line, "csr": csr.decode(), "proof": b64(proof)}
        return device.ask("rotate", signed_requests.sign_body(own, "rotate", keys, door.clock()))

    refused("E111", ask, a, b.identity)
    refused("E111", ask, a, a.identity, proof_by=b.identity)
    refused("E111", ask, a, a.identity, public=b.identity.public)
    refused("E110", ask, a, a.identity, node=a.identity.node_id)
    refused("E115", ask, a, a.identity, line="ssh-rsa AAAA")
    refused("E114", ask, a, a.identity, line=b.identity.flower_public)
    door.federation.suspend("a")
    refused("E206", ask, a, a.identity)
    door.federation.resume("a")
    assert a.ask("whoami")["node"] == a.identity.node_id, "nothing of that changed anything"


def test_devices_follow_to_a_new_root_that_the_old_one_signed(door, listening, refused):
    device, late = door.member("a"), door.member("late")
    _, token = door.federation.invite("early")
    authority, old = door.federation.authority, door.federation.authority.fingerprint
    authority.rotate_root(door.clock())
    authority.rotate_root(door.clock())
    assert authority.fingerprint != old
    port = door.port
    with listening(service(door.federation), door.federation.folder / "ca" / "server.pem") as door.port:
        for each in (device, late):
            each.note(endpoint=f"127.0.0.1:{door.port}")
        assert device.ask("whoami")["state"] == "active", "it trusts the first root alone, and the chain leads there"
        held = x509.load_pem_x509_certificates((device.folder / "root.pem").read_bytes())
        assert certificates.fingerprint(held[0]) == authority.fingerprint and certificates.fingerprint(held[-1]) == old
        device.renew()
        assert device.ask("whoami")["serial"] == device.leaf().serial
        late.renew(), late.rotate()
        assert door.begin("early", door.line(token))["state"] == "pending", "an invitation of the first root's time"
        assert door.begin("new", door.invite("new")[1])["state"] == "pending"
    door.port = port


def test_a_root_that_no_trusted_one_signed_is_not_learned(door, refused, tmp_path):
    device = door.member("a")
    before = (device.folder / "root.pem").read_bytes()
    other = Authority.create(tmp_path / "ca", "test", "localhost:1", ["localhost"], door.clock())
    other.rotate_root(door.clock())
    alone = certificates.text([other.root]).decode()
    for shown in (certificates.text([other.root, *other.crosses()]).decode(), alone):
        refused("E103", device.learn, {"roots": shown})
    door.federation.authority.rotate_root(door.clock())
    borrowed = certificates.text([other.root, *door.federation.authority.crosses()]).decode()
    refused("E103", device.learn, {"roots": borrowed})
    assert (device.folder / "root.pem").read_bytes() == before


def test_a_root_rotates_until_devices_could_not_follow(door, refused):
    authority = door.federation.authority
    for _ in range(3):
        authority.rotate_root(door.clock())
    refused("E306", authority.rotate_root, door.clock())
    (authority.folder / "root.key").unlink()
    assert "put it back" in str(refused("E306", authority.rotate, door.clock()))


async def anything(request):
    return JSONResponse({"state": "the thief's"})


THIEF = Starlette(routes=[Route("/{path:path}", anything, methods=["GET", "POST"])])
P384 = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


def forged(pair, *, like_ours=True):
    """A server certificate from a stolen pair, and its key; else without a hint whose key signed it."""
    key, names = identity.new_tls_key(), certificates.host_names(["127.0.0.1"])
    if like_ours:
        return certificates.leaf(key.public_key(), names, True, 30.0, time.time(), pair), key
    model = certificates.leaf(key.public_key(), names, True, 30.0, time.time(), pair)
    made = x509.CertificateBuilder().subject_name(model.subject).issuer_name(pair[0].subject)
    made = made.public_key(key.public_key()).serial_number(7).add_extension(names, critical=True)
    made = made.not_valid_before(model.not_valid_before_utc).not_valid_after(model.not_valid_after_utc)
    return made.sign(pair[1], hashes.SHA256()), key


def twin(certificate):
    """The same certificate in other bytes: (r, n - s) signs what (r, s) does."""

    def tagged(tag, body):
        size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
        return bytes([tag]) + (size if len(body) < 128 else bytes([0x80 + len(size)]) + size) + body

    r, s = decode_dss_signature(certificate.signature)
    algorithm = bytes.fromhex("300a06082a8648ce3d040303")  # ecdsa-with-SHA384
    signature = tagged(3, b"\0" + encode_dss_signature(r, P384 - s))
    return x509.load_der_x509_certificate(tagged(0x30, certificate.tbs_certificate_bytes + algorithm + signature))


@contextlib.contextmanager
def impostor(listening, folder, chain, key):
    """A server with somebody else's certificate; yields its address."""
    path = folder / f"{x509.random_serial_number():x}.pem"
    path.write_bytes(certificates.text(chain) + identity.pem(key))
    with listening(THIEF, path) as port:
        yield f"127.0.0.1:{port}"


def ask(device, address):
    device.note(endpoint=address)
    return device.ask("whoami")["state"]


def test_devices_that_heard_of_it_believe_a_stolen_issuing_key_no_more(door, listening, refused, tmp_path, monkeypatch):
    early, away = door.member("a"), door.member("away")
    authority = door.federation.authority
    old = authority.issuing_pair()
    leaf, key = forged(old)
    bare, bare_key = forged(old, like_ours=False)
    other = twin(old[0])
    assert other != old[0] and certificates.issued_by(other, authority.root)
    with contextlib.ExitStack() as stack:
        thief, *others = [
            stack.enter_context(impostor(listening, tmp_path, *given))
            for given in (([leaf, old[0]], key), ([leaf, other], key), ([bare, old[0]], bare_key))
        ]
        assert ask(early, thief) == ask(away, thief) == "the thief's", "which is why it must be evicted"
        authority.rotate(door.clock(), compromised=True)
        present = door.federation.folder / "ca" / "server.pem"
        true = f"127.0.0.1:{stack.enter_context(listening(service(door.federation), present))}"
        assert ask(early, true) == "active"
        for address in (thief, *others):
            refused("E219", ask, early, address)
        assert ask(away, thief) == "the thief's", "a thief who keeps a device from every answer has it until he expires"
        assert ask(away, true) == "active"
        refused("E219", ask, away, thief)

        with pytest.raises(httpx.ConnectError, match="certificate rejected"):
            forget(thief, str(early.trust.file), early.identity.node, 1)
        monkeypatch.setattr(httpx.Client, "__init__", httpx.Client.__init__)
        socket_files._connect({}, str(early.trust.file))
        with pytest.raises(httpx.ConnectError, match="certificate rejected"):  # Flower's SuperNode reads it so
            forget(thief, early.trust.file.read_bytes(), early.identity.node, 1)

        ask(early, true)
        assert early.superseded()
        early.renew()
        assert not early.superseded() and ask(early, true) == "active"
        early.rotate()
        refused("E219", ask, early, thief)
        own, door.port = door.port, int(true.rpartition(":")[2])
        assert door.begin("late", door.invite("late")[1])["state"] == "pending"
        door.device("late").note(endpoint=thief)
        refused("E219", join.poll, door.device("late"))
        door.port = own


def test_a_client_certificate_of_a_stolen_issuing_key_is_refused(door, refused):
    device, pair, key = door.member("a"), door.federation.authority.issuing_pair(), identity.new_tls_key()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(certificates.URN + device.identity.node_id)])
    made = certificates.leaf(key.public_key(), names, False, 7.0, door.clock(), pair).public_bytes(Encoding.DER)
    assert door.federation.authority.read(made).node == device.identity.node_id
    headers = signed_requests.seal(key, made, "POST", "/v1/enroll/whoami", b"", door.clock())
    refused("E208", authentication.authenticate, door.federation, headers, "POST", "/v1/enroll/whoami", b"")


def test_a_thief_has_a_device_that_hears_nothing_no_longer_than_the_issuing_certificate_holds(
    door, listening, refused, tmp_path
):
    device, authority, now = door.member("a"), door.federation.authority, time.time()
    assert authority.left(door.clock()) <= ISSUING_DAYS <= 90
    root, key = authority.root_pair(""), ec.generate_private_key(ec.SECP384R1())
    name = authority.issuing_pair()[0].subject.rfc4514_string().removeprefix("CN=")
    gone = certificates.authority(name, key, ISSUING_DAYS, now - (ISSUING_DAYS + 1) * DAY, 0, root)
    lasting = certificates.authority(name, key, ISSUING_DAYS, now, 0, root)
    leaf, leaf_key = forged((lasting, key))  # he may write any date in it
    with impostor(listening, tmp_path, [leaf, gone], leaf_key) as thief:
        refused("E203", ask, device, thief)


def test_an_older_or_foreign_list_changes_nothing(door, refused, tmp_path):
    device, authority = door.member("a"), door.federation.authority
    authority.rotate(door.clock(), compromised=True)
    first = authority.revoked()
    authority.rotate(door.clock(), compromised=True)
    second = authority.revoked()
    device.learn({"revoked": second})
    known = device.trust.file.read_bytes(), (device.folder / "revoked.pem").read_bytes()
    assert known[0].count(b"TRUSTED CERTIFICATE") == 4 and len(device.trust.revoked()) == 2
    device.learn({"revoked": first})
    other = Authority.create(tmp_path / "ca", "test", "localhost:1", ["localhost"], door.clock())
    other.rotate(door.clock() + DAY, compromised=True)
    refused("E311", device.learn, {"revoked": other.revoked()})
    refused("E311", device.learn, {"revoked": "nonsense"})
    refused("E311", device.learn, {"revoked": second.split("-----END X509 CRL-----")[0] + "-----END X509 CRL-----\n"})
    assert known == (device.trust.file.read_bytes(), (device.folder / "revoked.pem").read_bytes())
    (device.trust.file).write_bytes(certificates.text(device.trust.roots()))  # as if it was interrupted
    device.learn({"revoked": second})
    assert device.trust.file.read_bytes() == known[0]
    authority.rotate_root(door.clock() + 1, compromised=True)
    device.learn(admission.client_state(door.federation, door.federation.registry.client("a")))
    assert len(device.trust.roots()) == 2 and len(device.trust.revoked()) == 3


def test_an_answer_by_file_tells_of_it_and_one_that_the_old_key_signed_is_refused(door, refused, tmp_path):
    federation, mark = door.federation, door.federation.authority.fingerprint

    def answered(name):
        device = offline_join.request(tmp_path / name, tmp_path / f"{name}.zip", join.Data(), name=name,
                                 measured={}, clock=door.clock)  # fmt: skip
        offline_approval.answer(federation, tmp_path / f"{name}.zip", tmp_path / f"{name}-answer.zip", name=name)
        offline_join.accept(device, tmp_path / f"{name}-answer.zip", mark)
        return device

    first = answered("first")
    federation.authority.rotate(door.clock(), compromised=True)
    second = answered("second")
    assert len(second.trust.revoked()) == 1 and not first.trust.revoked()
    first.learn({"revoked": federation.authority.revoked()})
    refused("E219", offline_join.accept, first, tmp_path / "first-answer.zip", mark)


def test_grace_is_for_renewal_alone(door, refused):
    device = door.member("a")
    door.clock.ahead = 8 * DAY
    refused("E201", device.rotate)
    refused("E201", device.ask, "profile", {})
    refused("E201", authentication.fleet_key, door.federation, device.identity.flower_public)
    device.renew()
    device.rotate()


def test_an_owner_has_so_many_clients_and_no_more(make_door, refused):
    door = make_door(most_per_owner=2)
    for name in ("a", "b"):
        door.invite(name, labels={"owner": "st-mary"})
    refused("E118", door.invite, "c", labels={"owner": "st-mary"})
    door.invite("a", labels={"owner": "st-mary"})
    door.invite("c", labels={"owner": "st-john"})
    door.invite("d")
    door.federation.reject("b", "a mistake")
    assert door.invite("e", labels={"owner": "st-mary"})[0] == "e"


def test_a_node_that_floods_the_door_is_slowed_down_and_others_are_not(make_door, listening):
    from fedhet.federation.server import tls_proxy

    door = make_door(messages_per_minute=3)
    a, b = door.member("a"), door.member("b")
    root = (door.federation.folder / "ca" / "root.pem").read_bytes()
    app = tls_proxy.public_app(door.federation, service(door.federation), "https://127.0.0.1:1", tls.trusting(root))
    with listening(app, door.federation.folder / "ca" / "server.pem", lifespan="on") as port:

        def status(device):
            from base64 import b64encode

            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

            pem = device.identity.node.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            headers = {tls_proxy.KEY_HEADER: b64encode(pem).decode()}
            with httpx.Client(verify=tls.trusting(root), trust_env=False) as client:
                return client.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages", headers=headers).status_code

        assert [status(a) for _ in range(4)] == [503, 503, 503, 429], "503: no SuperLink is behind this door"
        assert status(b) == 503
        door.ticks.ahead = 61
        assert status(a) == 503


def test_codes_of_refusals_are_known():
    for code in ("E118", "E112"):
        assert EnrollError(code).status in (409, 429)
