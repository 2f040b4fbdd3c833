"""Keys are replaced while the federation goes on: a device's, the root's; and what one owner or node may have of it."""

import shutil

import httpx
import pytest
from cryptography import x509

from fedhet.enroll import admission, certificates, flower, identity, join, link, seal
from fedhet.enroll.canonical import b64
from fedhet.enroll.certificates import DAY
from fedhet.enroll.errors import EnrollError
from fedhet.enroll.members import Members


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
    refused("E208", admission.fleet_key, door.federation, old.flower_public)
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
        device.settle_keys()
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
        return device.ask("rotate", seal.sign_body(own, "rotate", keys, door.clock()))

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
    from fedhet.enroll.service import service

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
    from fedhet.enroll.ca import Authority

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
    assert "bring it back" in str(refused("E306", authority.rotate, door.clock()))


def test_grace_is_for_renewal_alone(door, refused):
    device = door.member("a")
    door.clock.ahead = 8 * DAY
    refused("E201", device.rotate)
    refused("E201", device.ask, "profile", {})
    refused("E201", admission.fleet_key, door.federation, device.identity.flower_public)
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
    from fedhet.enroll import proxy
    from fedhet.enroll.service import service

    door = make_door(messages_per_minute=3)
    a, b = door.member("a"), door.member("b")
    root = (door.federation.folder / "ca" / "root.pem").read_bytes()
    app = proxy.door(door.federation, service(door.federation), "https://127.0.0.1:1", link.trusting(root))
    with listening(app, door.federation.folder / "ca" / "server.pem", lifespan="on") as port:

        def status(device):
            from base64 import b64encode

            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

            pem = device.identity.node.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            headers = {proxy.KEY_HEADER: b64encode(pem).decode()}
            with httpx.Client(verify=link.trusting(root), trust_env=False) as client:
                return client.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages", headers=headers).status_code

        assert [status(a) for _ in range(4)] == [503, 503, 503, 429], "503: no SuperLink is behind this door"
        assert status(b) == 503
        door.ticks.ahead = 61
        assert status(a) == 503


def test_codes_of_refusals_are_known():
    for code in ("E118", "E112"):
        assert EnrollError(code).status in (409, 429)
