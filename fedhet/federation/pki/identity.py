"""The keys of a device, which are generated on it and never leave it; its node id is derived from its identity key.

identity.key  Ed25519: signs enrolment, profiles and every update       node id = SHA-256(domain, public key)[:16]
node.key      EC P-384 in OpenSSH form: how Flower's SuperNode authenticates itself
tls.key       EC P-256: the key in the certificate; a new one with every renewal
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki.canonical_json import digest

NODE_DOMAIN = "fedhet.node.v1"
ROTATION = "fedhet.rotation.v1"
"""Signature domain in which a new identity key signs that it replaces an old one."""
LOW_ORDER = frozenset(
    bytes.fromhex(y)
    for y in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Encodings, without the sign bit, of the eight points whose order divides 8. As public keys they verify forged
signatures, and OpenSSL does not reject them."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's keys in memory. `repr` shows only the node id."""

    signing: Ed25519PrivateKey
    node: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Identity({self.node_id})"

    @property
    def public(self) -> bytes:
        """The 32 bytes of the Ed25519 public key."""
        return self.signing.public_key().public_bytes_raw()

    @property
    def node_id(self) -> str:
        """The node id: 32 hexadecimal digits, derived from the identity key."""
        return node_id(self.public)

    @property
    def flower_public(self) -> str:
        """The SuperNode's public key as one OpenSSH line, as `flwr supernode register` takes it."""
        return openssh(self.node.public_key())

    def sign(self, domain: str, *parts: bytes) -> bytes:
        """Ed25519 signature, 64 bytes, over the digest of the parts in a domain."""
        return self.signing.sign(digest(domain, *parts))

    @classmethod
    def create(cls, folder: Path) -> Identity:
        """Generate keys in a folder of mode 0700. Raises EnrollError E305, or E306 if it contains keys already."""
        private_files.private_folder(folder)
        if (folder / "identity.key").exists():
            raise EnrollError("E306", f"{folder} already contains an identity")
        made = cls(Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1()))
        ssh = made.node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        private_files.write_file(folder / "node.key", ssh)
        private_files.write_file(folder / "node.pub", made.flower_public + "\n")
        private_files.write_file(
            folder / "identity.key", pem(made.signing)
        )  # last: its presence means that all keys are there
        return made

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Load the keys in a folder. Raises EnrollError E305, E306 or E324."""
        with private_files.sound(folder / "identity.key"):
            signing = serialization.load_pem_private_key(private_files.read_private(folder / "identity.key"), None)
        with private_files.sound(folder / "node.key"):
            node = serialization.load_ssh_private_key(private_files.read_private(folder / "node.key"), None)
        if not isinstance(signing, Ed25519PrivateKey) or not isinstance(node, ec.EllipticCurvePrivateKey):
            raise EnrollError("E306", f"the keys in {folder} are not of the kinds that fedhet makes")
        return cls(signing, node)


def node_id(public: bytes) -> str:
    """The node id of an Ed25519 public key."""
    return digest(NODE_DOMAIN, public)[:16].hex()


def verify(public: bytes, signature: bytes, domain: str, *parts: bytes) -> bool:
    """Whether this is the key's signature over the parts; False also for a malformed key or signature."""
    if public[:31] + bytes([public[31] & 0x7F] if len(public) == 32 else []) in LOW_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, digest(domain, *parts))
    except (InvalidSignature, ValueError):
        return False
    return True


def openssh(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as one OpenSSH line without comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def flower_key(line: str) -> ec.EllipticCurvePublicKey:
    """Parse a SuperNode's public key, one OpenSSH line without comment. Raises ValueError unless it is EC P-384."""
    try:
        key = serialization.load_ssh_public_key(line.encode("ascii", errors="replace"))
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("a SuperNode's key must be EC P-384")
    if openssh(key) != line:
        raise ValueError("a SuperNode's key is one line without a comment")
    return key


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """Generate an EC P-256 key for a certificate."""
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, passphrase: str = "") -> bytes:
    """A private key as PKCS#8 PEM, encrypted if a passphrase is given."""
    lock = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


def load_ec_key(data: bytes, passphrase: str = "") -> ec.EllipticCurvePrivateKey:
    """Load an EC private key from PEM; `passphrase` is used if it is encrypted. Raises EnrollError E306 for another
    kind of key or a wrong passphrase."""
    given = passphrase.encode() if passphrase and b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data else None
    try:
        key = serialization.load_pem_private_key(data, given)
    except (ValueError, TypeError) as error:
        raise EnrollError("E306", f"private key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EnrollError("E306", f"a private key is {type(key).__name__}, not EC")
    return key
