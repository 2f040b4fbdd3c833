"""The files of a certificate authority, as they are read: certificates, keys, and what the authority is for.

ca.json      federation, endpoint, host names, signer command
root.pem     the root                root.*.pem       roots that it replaced     cross.pem    the root, cross-signed
issuing.pem  the issuing certificate issuing.*.pem    earlier ones               revoked.pem  those that are revoked
root.key, issuing.key, server.pem, operator.key       private keys
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates, identity
from fedhet.federation.pki.certificates import DAY, Leaf
from fedhet.federation.pki.key_encryption import Lock, is_sealed, unseal

Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@dataclass(frozen=True, slots=True)
class About:
    """Settings of an authority: federation name, public endpoint "host:port", host names, signer command or ()."""

    federation: str
    endpoint: str
    hosts: tuple[str, ...]
    signer: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthorityFiles:
    """What an authority's folder holds, read and never changed. The folder has mode 0700."""

    folder: Path
    lock: Lock = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lock", Lock(self.folder))

    @property
    def about(self) -> About:
        """Its settings (ca.json). Raises EnrollError E324."""
        path = self.folder / "ca.json"
        with private_files.sound(path):
            given = json.loads(path.read_text())
            return About(given["federation"], given["endpoint"], tuple(given["hosts"]), tuple(given["signer"]))

    @property
    def root(self) -> x509.Certificate:
        """The root certificate."""
        return read_certificates(self.folder / "root.pem")[0]

    @property
    def fingerprint(self) -> str:
        """The root's SHA-256 in hexadecimal, which tokens contain."""
        return certificates.fingerprint(self.root)

    def crosses(self) -> list[x509.Certificate]:
        """The present root signed by the previous one, and so on to the first; empty if there was only one root."""
        path = self.folder / "cross.pem"
        return read_certificates(path) if path.exists() else []

    def roots(self) -> list[x509.Certificate]:
        """All roots, the present one first: an invitation may contain the hash of an earlier one."""
        earlier = [read_certificates(path)[0] for path in sorted(self.folder.glob("root.*.pem"))]
        return [self.root, *earlier]

    def issuers(self) -> list[x509.Certificate]:
        """Every certificate that may have signed a client's: the issuing one, earlier ones, and the root, which is
        last."""
        found = [read_certificates(path)[0] for path in sorted(self.folder.glob("issuing*.pem"))]
        return [*found, self.root]

    def read(self, der: bytes) -> Leaf:
        """The fields of a client's certificate (DER) that this authority issued; dates are not checked. Raises E208."""
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError:
            raise EnrollError("E208", "it cannot be read") from None
        return certificates.read_client(certificate, self.issuers())

    def left(self, now: float) -> float | None:
        """Days until the issuing certificate expires; None with an outside authority."""
        path = self.folder / "issuing.pem"
        if not path.exists():
            return None
        issuing = read_certificates(path)[0]
        return (issuing.not_valid_after_utc.timestamp() - now) / DAY

    def revoked(self) -> str:
        """The root's revocation list of issuing certificates, followed by these certificates, PEM; "" if there is
        none."""
        path = self.folder / "revoked.pem"
        return path.read_text() if path.exists() else ""

    @property
    def needs_passphrase(self) -> bool:
        """Whether a passphrase is needed to use the keys, or for a new issuing key."""
        root = self.folder / "root.key"
        return self.lock.exists or (root.exists() and b"BEGIN PRIVATE KEY" not in private_files.read_private(root))

    def server_key(self) -> ec.EllipticCurvePrivateKey:
        """The private key in server.pem. Raises EnrollError E306, E322 or E324."""
        path, password = self.folder / "server.pem", self.lock.password
        with private_files.sound(path):
            return identity.load_ec_key(private_files.read_private(path), password)

    def issuing_pair(self) -> Pair:
        path = self.folder / "issuing.key"
        data, password = private_files.read_private(path), self.lock.password
        with private_files.sound(path):
            return x509.load_pem_x509_certificate(data), identity.load_ec_key(data, password)

    def root_pair(self, passphrase: str) -> Pair:
        """The root and its key, which may have a passphrase of its own. Raises EnrollError E306 or E323."""
        root = self.root
        for name in ("root.key", "root.key.new"):  # the second one is left by an interrupted rotation
            if (self.folder / name).exists():
                data = private_files.read_private(self.folder / name)
                data = unseal(data, passphrase) if is_sealed(data) else data
                key = identity.load_ec_key(data, passphrase)
                if key.public_key() == root.public_key():
                    return root, key
        raise EnrollError("E306", f"{self.folder} does not contain the root's key: put it back for this command")


def read_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file, at least one. Raises EnrollError E324 if the file is damaged."""
    with private_files.sound(path):
        return x509.load_pem_x509_certificates(path.read_bytes())
