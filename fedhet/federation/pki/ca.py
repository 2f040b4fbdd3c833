"""The federation's certificate authority: a root that can be stored offline, an issuing key, short-lived certificates.

    root (10 years) ── issuing (90 days) ─┬─ server (30 days, renewed when the server starts)
                                          └─ client (7 days edge, 30 days silo)

Devices trust only the root, so the issuing key can be replaced without them; certificates signed by the old key stay
valid until they expire. If it was stolen, the root revokes it, and devices refuse every chain through it from the next
answer that they receive (trust.py). A device that an attacker cuts off from all answers accepts it until the issuing
certificate expires, which is why that is short-lived. Client certificates need no revocation list: the registry has
every issued one.

A new root is also signed by the previous one: devices that trust only the old root still accept the server, and receive
the new root with the server's next answer. Instead, an operator's own authority can sign (ca_signer.py). With a
passphrase the keys are encrypted (key_encryption.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import ca_signer as signer
from fedhet.federation.pki import certificates, identity
from fedhet.federation.pki.ca_files import About, AuthorityFiles, Pair, read_certificates
from fedhet.federation.pki.ca_requirements import check_new, foreign_root
from fedhet.federation.pki.certificates import DAY, Leaf
from fedhet.federation.pki.key_encryption import is_sealed, seal, unseal

ROOT_DAYS, ISSUING_DAYS, SERVER_DAYS = 3650.0, 90.0, 30.0
NOTICE_DAYS = 30.0
"""Days before the expiry of the issuing certificate, and with it of every other, at which the operator is warned."""
EXPIRY_WARNING = (
    "the issuing key expires in %.0f days, and every certificate with it: bring root.key back for `fedhet ca rotate`"
)
ROOT_DEPTH = 4
"""Path length of a root: the issuing key, and up to three roots that follow it."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Authority(AuthorityFiles):
    """The authority in a folder of mode 0700: reads (see `AuthorityFiles`), issues and rotates."""

    @classmethod
    def create(
        cls, folder: Path, federation: str, endpoint: str, hosts: Sequence[str], now: float, *, passphrase: str = "",
        root: Path | None = None, command: Sequence[str] = (),
    ) -> Authority:  # fmt: skip
        """Create root, issuing and server certificates; given an outside root and a signer command, only the server's.

        Raises what `check_new` raises, before anything is written, and EnrollError E309; files written before a failure
        are removed.
        """
        check_new(folder, federation, hosts, passphrase=passphrase, root=root, command=command)
        with private_files.all_or_none(folder):
            created = cls(folder)
            if passphrase:
                created.lock.write(passphrase)
            if root is not None:
                private_files.write_file(folder / "root.pem", certificates.text([foreign_root(root)]))
            else:
                created._make_root(federation, passphrase, now)
            about = About(federation, endpoint, tuple(hosts), tuple(command))
            created._renew_server(about, now)
            private_files.write_file(folder / "ca.json", json.dumps(asdict(about), indent=1) + "\n")
        return created

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Open an existing authority. Raises EnrollError E305 or E306."""
        if not (folder / "ca.json").exists():
            raise EnrollError("E306", f"{folder} contains no authority: run fedhet ca init")
        private_files.private_folder(folder)
        return cls(folder)

    def issue(self, csr: bytes, node: str, days: float, now: float) -> tuple[bytes, Leaf]:
        """Issue a client certificate; returns the chain as PEM and the leaf's fields. Raises EnrollError E110 or
        E309."""
        checked = certificates.check_request(csr, node)
        if command := self.about.signer:
            chain = signer.ask(command, csr, self.root, usage="client", node=node, days=days, now=now)
            self._store_intermediates(chain[1:])
            return certificates.text(chain), certificates.read_client(chain[0], self.issuers())
        public, names = checked.public_key(), checked.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert isinstance(public, ec.EllipticCurvePublicKey)  # checked by check_request
        issuing = self.issuing_pair()
        created = certificates.leaf(public, names.value, False, days, now, issuing)
        return certificates.text([created, issuing[0]]), certificates.describe(created, node)

    def rotate(
        self, now: float, passphrase: str = "", *, compromised: bool = False, days: float = ISSUING_DAYS
    ) -> x509.Certificate:
        """Replace the issuing key; returns its certificate. Raises EnrollError E306.

        Certificates that earlier keys signed stay valid until they expire; if `compromised`, devices will refuse them.
        """
        if self.about.signer:
            raise EnrollError("E306", "the issuing key is the signer command's")
        old = read_certificates(self.folder / "issuing.pem")[0]
        private_files.write_file(self.folder / f"issuing.{old.serial_number:x}.pem", certificates.text([old]))
        federation = self.about.federation
        root = self.root_pair(passphrase)
        created = self._make_issuing(federation, root, now, days)
        self._renew_server(self.about, now)
        if compromised:
            self._revoke([one for one in self.issuers()[:-1] if one != created], root, now)
        return created

    def rotate_root(self, now: float, passphrase: str = "", *, compromised: bool = False) -> x509.Certificate:
        """Replace the root, cross-signed by the old one, and the issuing key; `compromised` as for `rotate`.

        Raises EnrollError E306.
        """
        if self.about.signer:
            raise EnrollError("E306", "the root is the outside authority's")
        old, old_key = self.root_pair(passphrase)
        depth = old.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length or 0
        if depth < ROOT_DEPTH or len(self.crosses()) >= ROOT_DEPTH - 1:
            raise EnrollError("E306", "the certificate chain would be too long for devices: create a new federation")
        name, key = f"{self.about.federation} root {len(self.crosses()) + 2}", ec.generate_private_key(ec.SECP384R1())
        root = certificates.authority(name, key, ROOT_DAYS, now, ROOT_DEPTH)
        left = (old.not_valid_after_utc.timestamp() - now) / DAY
        cross = certificates.authority(name, key, min(ROOT_DAYS, left), now, ROOT_DEPTH - 1, (old, old_key))
        private_files.write_file(self.folder / f"root.{old.serial_number:x}.pem", certificates.text([old]))
        private_files.write_file(self.folder / "root.key.new", _root_key(key, passphrase))
        private_files.write_file(self.folder / "cross.pem", certificates.text([cross, *self.crosses()]))
        private_files.write_file(self.folder / "root.pem", certificates.text([root]))
        (self.folder / "root.key.new").replace(self.folder / "root.key")
        self.rotate(now, passphrase, compromised=compromised)
        return root

    def encrypt(self, old: str, new: str) -> list[str]:
        """Encrypt unencrypted keys and change the passphrase; returns the names of the written files.

        After an interruption, repeat it with the same two passphrases. Raises EnrollError E306 or E323.
        """
        done = []
        root = self.folder / "root.key"
        if root.exists():  # first, while the lock still accepts the old passphrase
            data = private_files.read_private(root)
            opened = lambda word: identity.load_ec_key(unseal(data, word) if is_sealed(data) else data, word)  # noqa: E731
            key = self._with_either(opened, old, new)
            private_files.write_file(root, _root_key(key, new))
            done.append(root.name)
        if self.lock.exists:
            self._with_either(self.lock.open, old, new)
        self.lock.write(new)
        for name in ("issuing.key", "server.pem", "operator.key"):
            path = self.folder / name
            data = private_files.read_private(path) if path.exists() else b""
            if b"-----BEGIN PRIVATE KEY-----" in data:
                key = identity.load_ec_key(data)
                has_chain = b"-----BEGIN CERTIFICATE-----" in data
                chain = certificates.text(x509.load_pem_x509_certificates(data)) if has_chain else b""
                private_files.write_file(path, identity.pem(key, self.lock.password) + chain)
                done.append(name)
        return [*done, "lock.json"]

    def renew_server(self, now: float) -> None:
        """Replace the server's certificate if less than a third of its lifetime is left, or if it is not valid yet
        because this machine's clock was ahead when it was made."""
        leaf = certificates.describe(read_certificates(self.folder / "server.pem")[0])
        if now < leaf.not_before or now > leaf.not_after - SERVER_DAYS * DAY / 3:
            self._renew_server(self.about, now)

    def crl(self, entries: Iterable[tuple[str, float]], now: float) -> bytes:
        """The certificate revocation list for third parties, PEM. Raises EnrollError E306 with a signer command."""
        if self.about.signer:
            raise EnrollError("E306", "the outside authority publishes its own list")
        return certificates.revocations(entries, now, self.issuing_pair())

    def _make_root(self, federation: str, passphrase: str, now: float) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        root = certificates.authority(f"{federation} root", key, ROOT_DAYS, now, ROOT_DEPTH)
        private_files.write_file(self.folder / "root.key", _root_key(key, passphrase))
        private_files.write_file(self.folder / "root.pem", certificates.text([root]))
        self._make_issuing(federation, (root, key), now)

    def _revoke(self, revoked_certificates: Sequence[x509.Certificate], root: Pair, now: float) -> None:
        before = self.revoked().encode()
        numbers = x509.load_pem_x509_crl(before).extensions.get_extension_for_class(x509.CRLNumber) if before else None
        # Based on the time, numbers increase even if the previous list was lost.
        number = max(int(now), numbers.value.crl_number + 1 if numbers else 0)
        entries = [(f"{one.serial_number:x}", now) for one in revoked_certificates]
        listed = certificates.revocations(entries, now, root, days=ROOT_DAYS, number=number)
        private_files.write_file(self.folder / "revoked.pem", listed + certificates.text(revoked_certificates))

    def _make_issuing(self, federation: str, root: Pair, now: float, days: float = ISSUING_DAYS) -> x509.Certificate:
        key = ec.generate_private_key(ec.SECP384R1())
        created = certificates.authority(f"{federation} issuing", key, days, now, 0, root)
        # Key and certificate in one file: one rename replaces both atomically.
        private_files.write_file(
            self.folder / "issuing.key", identity.pem(key, self.lock.password) + certificates.text([created])
        )
        private_files.write_file(self.folder / "issuing.pem", certificates.text([created]))
        return created

    def _renew_server(self, about: About, now: float) -> None:
        key = identity.new_tls_key()
        if about.signer:
            asked = certificates.server_request(key, about.hosts)
            chain = signer.ask(about.signer, asked, self.root, usage="server", node="", days=SERVER_DAYS, now=now)
            self._store_intermediates(chain[1:])
        else:
            issuing = self.issuing_pair()
            names = certificates.host_names(about.hosts)
            chain = [certificates.leaf(key.public_key(), names, True, SERVER_DAYS, now, issuing), issuing[0]]
            chain += self.crosses()
        private_files.write_file(
            self.folder / "server.pem", certificates.text(chain) + identity.pem(key, self.lock.password)
        )

    @staticmethod
    def _with_either(work: Callable[[str], T], old: str, new: str) -> T:
        """Call `work` with the old passphrase, or with the new one, which an interrupted call may have set. Raises
        E323."""
        try:
            return work(old)
        except EnrollError:
            try:
                return work(new)
            except EnrollError:
                raise EnrollError("E323") from None

    def _store_intermediates(self, intermediates: Sequence[x509.Certificate]) -> None:
        for certificate in intermediates:
            path = self.folder / f"issuing.{certificate.serial_number:x}.pem"
            if not path.exists():
                private_files.write_file(path, certificate.public_bytes(Encoding.PEM))


def _root_key(key: ec.EllipticCurvePrivateKey, passphrase: str) -> bytes:
    return seal(identity.pem(key), passphrase) if passphrase else identity.pem(key)
