"""Keys, certificates, tokens and signatures: what is created, and what is refused with which code."""

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import CATALOGUE, EnrollError
from fedhet.federation.pki import certificates, identity, invitation, key_encryption, update_signature
from fedhet.federation.pki.ca import Authority
from fedhet.federation.pki.canonical_json import canonical, digest
from fedhet.federation.pki.certificates import DAY, URN
from fedhet.federation.pki.identity import Identity

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority.create(
        tmp_path_factory.mktemp("ca") / "ca", "test", "localhost:1", ["localhost", "127.0.0.1"], NOW
    )


def refused(code, call, *args, **kwargs):
    with pytest.raises(EnrollError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def der(chain):
    return x509.load_pem_x509_certificates(chain)[0].public_bytes(serialization.Encoding.DER)


def test_error_codes_have_distinct_exit_numbers_and_survive_the_wire():
    errors = [EnrollError(code, "what", seconds=3) for code in CATALOGUE]
    assert len({e.exit_code for e in errors}) == len(errors)
    assert all(0 < e.exit_code < 126 for e in errors)
    assert all(EnrollError.from_dict(e.to_dict()).to_dict() == e.to_dict() for e in errors)
    assert EnrollError.from_dict("<html>").code == "E311"


def test_keys_are_private_files_in_a_private_folder(tmp_path):
    made = Identity.create(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    for name in ("identity.key", "node.key"):
        assert stat.S_IMODE((tmp_path / "s" / name).stat().st_mode) == 0o600
    assert Identity.load(tmp_path / "s").node_id == made.node_id
    assert (tmp_path / "s" / "node.key").read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert isinstance(identity.flower_key(made.flower_public).curve, ec.SECP384R1)
    refused("E306", Identity.create, tmp_path / "s")


def test_a_key_that_others_can_read_is_not_used(tmp_path):
    Identity.create(tmp_path / "s")
    (tmp_path / "s" / "identity.key").chmod(0o644)
    refused("E305", Identity.load, tmp_path / "s")
    (tmp_path / "s").chmod(0o755)
    refused("E305", private_files.private_folder, tmp_path / "s")


def test_a_file_whose_writing_fails_keeps_its_old_content(tmp_path, monkeypatch):
    private_files.write_file(tmp_path / "a", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        private_files.write_file(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_canonical_bytes_ignore_order_and_refuse_floats():
    assert (
        canonical({"b": [1, None], "a": "é"})
        == canonical({"a": "é", "b": (1, None)})
        == '{"a":"é","b":[1,null]}'.encode()
    )
    for bad in (1.0, {"a": [0.5]}, {1: 2}, b"x"):
        with pytest.raises(TypeError):
            canonical(bad)
    assert digest("d", b"ab", b"c") != digest("d", b"a", b"bc")


def test_a_token_reads_back_and_hides_its_secret():
    made = invitation.Token.new("fl.example.org:8443", "ab" * 32)
    assert invitation.Token.parse(f"  {made.line}\n") == made
    assert made.secret not in repr(made)
    assert invitation.same(made.hash, made.id, made.secret)
    assert not invitation.same(made.hash, made.id, made.secret[:-1] + "2")
    assert made.secret.encode() not in made.hash


@given(st.data())
def test_a_token_with_one_character_changed_is_refused_without_repeating_it(data):
    line = invitation.Token.new("[::1]:8443", "0f" * 32).line
    at = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != line[at] and not c.isspace()))
    error = refused("E108", invitation.Token.parse, line[:at] + other + line[at + 1 :])
    assert line[-30:] not in str(error)


def test_a_client_certificate_names_its_node_and_lives_as_long_as_its_class(authority):
    key, node = identity.new_tls_key(), "ab" * 16
    chain, leaf = authority.issue(certificates.request(key, node), node, 7.0, NOW)
    assert authority.read(der(chain)) == leaf
    assert (leaf.node, round((leaf.not_after - NOW) / DAY, 6)) == (node, 7.0)
    life = leaf.not_after - leaf.not_before
    assert leaf.not_before + 0.56 * life < leaf.renew_at < leaf.not_before + 0.77 * life


def test_certificates_of_others_are_refused(authority, tmp_path):
    key, node = identity.new_tls_key(), "ab" * 16
    other = Authority.create(tmp_path / "ca", "test", "localhost:1", ["localhost"], NOW)
    refused("E208", authority.read, der(other.issue(certificates.request(key, node), node, 7.0, NOW)[0]))
    own = certificates.authority("me", key, 7.0, NOW, 0)
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URN + node)])
    self_made = certificates.leaf(key.public_key(), name, False, 7.0, NOW, (own, key))
    refused("E208", authority.read, self_made.public_bytes(serialization.Encoding.DER))
    server = x509.load_pem_x509_certificate((authority.folder / "server.pem").read_bytes())
    refused("E208", authority.read, server.public_bytes(serialization.Encoding.DER))
    refused("E208", authority.read, b"\x30\x00")


def test_a_request_for_more_or_other_than_its_node_is_refused(authority):
    key, node = identity.new_tls_key(), "ab" * 16
    refused("E110", authority.issue, certificates.request(key, "cd" * 16), node, 7.0, NOW)
    refused(
        "E110", authority.issue, certificates.request(ec.generate_private_key(ec.SECP384R1()), node), node, 7.0, NOW
    )
    refused("E110", authority.issue, b"no request", node, 7.0, NOW)
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URN + node)])
    base = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(uri, True)
    more = base.add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(key, hashes.SHA256())
    refused("E110", authority.issue, more.public_bytes(serialization.Encoding.PEM), node, 7.0, NOW)


def test_a_new_issuing_key_signs_from_now_on_and_the_old_ones_certificates_hold(authority):
    key, node = identity.new_tls_key(), "ab" * 16
    before, _ = authority.issue(certificates.request(key, node), node, 7.0, NOW)
    authority.rotate(NOW)
    after, _ = authority.issue(certificates.request(key, node), node, 7.0, NOW)
    assert authority.read(der(before)).node == authority.read(der(after)).node == node
    assert x509.load_pem_x509_certificates(before)[1] != x509.load_pem_x509_certificates(after)[1]


def test_a_root_key_with_a_passphrase_rotates_only_with_it(cheap, tmp_path):
    made = Authority.create(tmp_path / "ca", "t", "localhost:1", ["localhost"], NOW, passphrase="correct horse")
    refused("E323", made.rotate, NOW, "wrong")
    refused("E323", made.rotate, NOW)
    assert made.rotate(NOW, "correct horse").issuer == made.root.subject


def in_the_clear(folder):
    return sorted(p.name for p in folder.iterdir() if b"-----BEGIN PRIVATE KEY-----" in p.read_bytes())


def test_keys_lie_encrypted_and_one_file_has_the_passphrase(cheap, tmp_path):
    folder, request = tmp_path / "ca", certificates.request(identity.new_tls_key(), "ab" * 16)
    refused("E323", Authority.create, folder, "t", "localhost:1", ["localhost"], NOW, passphrase="short")
    made = Authority.create(folder, "t", "localhost:1", ["localhost"], NOW, passphrase="correct horse")
    assert in_the_clear(folder) == []
    chain, _ = made.issue(request, "ab" * 16, 7.0, NOW)

    later = Authority.load(folder)
    assert later.read(der(chain)).node == "ab" * 16, "certificates are read without"
    for call in (lambda: later.issue(request, "ab" * 16, 7.0, NOW), lambda: later.crl([], NOW), later.server_key):
        refused("E322", call)
    asked = []
    later.lock.ask = lambda: asked.append(1) or "wrong horse"
    refused("E323", later.issue, request, "ab" * 16, 7.0, NOW)
    later.lock.ask = lambda: asked.append(1) or "correct horse"
    later.issue(request, "ab" * 16, 7.0, NOW), later.crl([], NOW), later.server_key()
    assert len(asked) == 2, "a right answer is remembered"

    before = (folder / "issuing.key").read_bytes()
    refused("E323", later.encrypt, "wrong horse", "battery staple")
    later.encrypt("correct horse", "battery staple")
    assert (folder / "issuing.key").read_bytes() == before
    after = Authority.load(folder)
    refused("E323", after.lock.open, "correct horse")
    after.lock.open("battery staple")
    assert after.rotate(NOW, "battery staple").issuer == after.root.subject
    after.rotate_root(NOW, "battery staple")
    assert in_the_clear(folder) == []
    (folder / "lock.json").write_bytes(b"{}")
    refused("E324", Authority.load(folder).lock.open, "battery staple")


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_keys_that_lie_in_the_clear_are_encrypted_even_if_that_is_interrupted(cheap, tmp_path, monkeypatch, cut):
    made = Authority.create(tmp_path / "ca", "t", "localhost:1", ["localhost"], NOW)
    assert in_the_clear(made.folder) == ["issuing.key", "root.key", "server.pem"] and not made.needs_passphrase
    write, written = private_files.write_file, []

    def full(path, *given):
        written.append(path)
        if len(written) > cut:
            raise OSError(28, "No space left on device", str(path))
        write(path, *given)

    with monkeypatch.context() as patch:
        patch.setattr(private_files, "write_file", full)
        with pytest.raises(OSError, match="No space"):
            made.encrypt("", "correct horse")
    again = Authority.load(made.folder)
    if again.needs_passphrase:
        again.lock.ask = lambda: "correct horse"
    assert again.crl([], NOW), "it goes on working in between"
    Authority.load(made.folder).encrypt("correct horse", "correct horse")
    assert in_the_clear(made.folder) == []
    last = Authority.load(made.folder)
    last.lock.open("correct horse")
    assert last.rotate(NOW, "correct horse").issuer == last.root.subject


def test_a_root_key_that_an_earlier_version_encrypted_still_rotates_and_is_sealed(cheap, tmp_path):
    made = Authority.create(tmp_path / "ca", "t", "localhost:1", ["localhost"], NOW)
    key = identity.load_ec_key((made.folder / "root.key").read_bytes())
    private_files.write_file(made.folder / "root.key", identity.pem(key, "correct horse"))
    assert made.needs_passphrase
    refused("E306", made.rotate, NOW, "wrong")
    made.rotate(NOW, "correct horse")
    made.encrypt("correct horse", "battery staple")
    assert key_encryption.is_sealed((made.folder / "root.key").read_bytes()) and made.rotate(NOW, "battery staple")


def test_a_seal_gives_back_what_it_was_given_to_its_passphrase_alone(cheap):
    box = key_encryption.seal(b"secret", "pass phrase ü")
    assert key_encryption.unseal(box, "pass phrase ü") == b"secret" and b"secret" not in box
    refused("E323", key_encryption.unseal, box, "pass phrase u")
    told = json.loads(box)
    refused(
        "E323", key_encryption.unseal, json.dumps({**told, "box": told["box"][:-4] + "AAA="}).encode(), "pass phrase ü"
    )
    for changed in ({"cost": 60}, {"cost": "x"}, {"sealed": 2}, {"salt": 1}):
        refused("E306", key_encryption.unseal, json.dumps({**told, **changed}).encode(), "pass phrase ü")
    refused("E306", key_encryption.unseal, b"[]", "pass phrase ü")


@pytest.fixture
def cheap(monkeypatch):
    """A passphrase costs next to nothing to try; everything else is as it is."""
    assert key_encryption.COST >= 17
    monkeypatch.setattr(key_encryption, "COST", 4)


SIGNER = """
import os, sys, pathlib
from fedhet.federation.pki import ca, certificates
from cryptography import x509
folder, mode = sys.argv[1:]
theirs = ca.Authority(pathlib.Path(folder))
pair = theirs.issuing_pair()
csr = x509.load_pem_x509_csr(sys.stdin.buffer.read())
names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
days = float(os.environ["FEDHET_DAYS"]) + (30 if mode == "long" else 0)
if mode == "broken": sys.exit("no HSM")
made = certificates.leaf(csr.public_key(), names, os.environ["FEDHET_USAGE"] == "server", days, 1.8e9, pair)
sys.stdout.buffer.write(certificates.text([made, pair[0], theirs.root]))
"""


def test_an_outside_authority_signs_by_a_command_and_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(certificates.__file__).parents[3]))
    theirs = Authority.create(tmp_path / "theirs", "theirs", "localhost:1", ["localhost"], NOW)
    (tmp_path / "signer.py").write_text(SIGNER)

    def made(name, mode):
        command = [sys.executable, str(tmp_path / "signer.py"), str(tmp_path / "theirs"), mode]
        return Authority.create(tmp_path / name, "ours", "localhost:1", ["localhost"], NOW,
                                root=tmp_path / "theirs" / "root.pem", command=command)  # fmt: skip

    ours, node = made("ours", "good"), "ab" * 16
    chain, leaf = ours.issue(certificates.request(identity.new_tls_key(), node), node, 7.0, NOW)
    assert ours.read(der(chain)) == leaf == theirs.read(der(chain))
    assert ours.fingerprint == theirs.fingerprint
    assert not (tmp_path / "ours" / "root.key").exists()
    refused("E306", ours.rotate, NOW)
    assert "no HSM" in str(refused("E309", made, "broken", "broken"))
    assert "longer" in str(refused("E309", made, "long", "long"))


def statement(own):
    return update_signature.Statement("run", own.node_id, 3, 5, b"s" * 32, b"p" * 32, 12.0, {"loss": 0.5, "acc": 0.25})


def test_a_signature_covers_every_field_of_an_update(tmp_path):
    own, other = Identity.create(tmp_path / "a"), Identity.create(tmp_path / "b")
    said = statement(own)
    mark = update_signature.sign(own, said)
    assert update_signature.verify(own.public, said, mark)
    assert update_signature.verify(own.public, replace(said, metrics={"acc": 0.25, "loss": 0.5}), mark)
    changed = {"run": "other", "task": 4, "version": 6, "schema": b"t" * 32, "payload": b"q" * 32, "weight": 12.5,
               "metrics": {"loss": 0.5}, "node": other.node_id}  # fmt: skip
    assert set(changed) == set(update_signature.Statement.__slots__)
    for name, value in changed.items():
        assert not update_signature.verify(own.public, replace(said, **{name: value}), mark), name
    assert not update_signature.verify(other.public, said, mark)
    assert not update_signature.verify(own.public, said, mark[:-1] + bytes([mark[-1] ^ 1]))
    assert not update_signature.verify(own.public, said, b"")
    assert not update_signature.verify(bytes(32), said, bytes(64))
    with pytest.raises(ValueError, match="this device"):
        update_signature.sign(other, said)


def test_a_stolen_key_does_not_speak_for_another_node(tmp_path):
    own, other = Identity.create(tmp_path / "a"), Identity.create(tmp_path / "b")
    said = statement(other)
    mark = own.sign(update_signature.DOMAIN, *said.parts())
    assert not update_signature.verify(own.public, said, mark)
