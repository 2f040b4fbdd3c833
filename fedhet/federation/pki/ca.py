"""The federation's certificate authority: a root that can lie in a safe, an issuing key that works, short certificates.

    root (10 years) ── issuing (90 days) ─┬─ server (30 days, renewed when the server starts)
                                          └─ client (7 days edge, 30 days silo)

Devices trust the root alone, so the issuing key is replaced without them noticing; certificates that the old one signed
hold until they expire. If it was stolen, the root revokes it, and devices refuse every chain through it from the next
answer on that they get (trust.py); one that the thief keeps from every answer until its certificate expires, which is
why that lives so short. Clients' own certificates need no such list: the registry knows each that was issued.

A new root is signed by the one before it as well: devices that know the old one alone still recognise the server, and
learn the new one when they ask for anything. Instead of all this an operator's own authority may sign (see signer.py).
Keys lie encrypted if there is a passphrase (lock.py).
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
"""So long before the issuing certificate expires, and with it every other, the operator is told."""
EXPIRING = (
    "the issuing key expires in %.0f days, and every certificate with it: bring root.key back for `fedhet ca rotate`"
)
ROOT_DEPTH = 4
"""Authorities below a root: the issuing key, and up to three roots after it."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Authority(AuthorityFiles):
    """The authority in a folder of mode 0700."""

    @classmethod
    def create(
        cls, folder: Path, federation: str, endpoint: str, hosts: Sequence[str], now: float, *, passphrase: str = "",
        root: Path | None = None, command: Sequence[str] = (),
    ) -> Authority:  # fmt: skip
        """Make root, issuing and server certificates; or, given a foreign root and a signer command, the server's.

        Nothing is written for what `check_new` refuses, and nothing stays of what fails later, as a signer may.
        """
        check_new(folder, federation, hosts, passphrase=passphrase, root=root, command=command)
        with private_files.all_or_none(folder):
            made = cls(folder)
            if passphrase:
                made.lock.write(passphrase)
            if root is not None:
                private_files.write_file(folder / "root.pem", certificates.text([foreign_root(root)]))
            else:
                made._make_root(federation, passphrase, now)
            about = About(federation, endpoint, tuple(hosts), tuple(command))
            made._renew_server(about, now)
            private_files.write_file(folder / "ca.json", json.dumps(asdict(about), indent=1) + "\n")
        return made

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """An existing authority. Raises EnrollError E306."""
        if not (folder / "ca.json").exists():
            raise EnrollError("E306", f"{folder} holds no authority: run fedhet ca init")
        private_files.private_folder(folder)
        return cls(folder)

    def issue(self, csr: bytes, node: str, days: float, now: float) -> tuple[bytes, Leaf]:
        """A client's certificate for a checked request: the chain as PEM, and what it says. Raises E110, E309."""
        checked = certificates.check_request(csr, node)
        if command := self.about.signer:
            chain = signer.ask(command, csr, self.root, usage="client", node=node, days=days, now=now)
            self._remember(chain[1:])
            return certificates.text(chain), certificates.read_client(chain[0], self.issuers())
        public, names = checked.public_key(), checked.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert isinstance(public, ec.EllipticCurvePublicKey)  # check_request saw to it
        issuing = self.issuing_pair()
        made = certificates.leaf(public, names.value, False, days, now, issuing)
        return certificates.text([made, issuing[0]]), certificates.describe(made, node)

    def rotate(
        self, now: float, passphrase: str = "", *, compromised: bool = False, days: float = ISSUING_DAYS
    ) -> x509.Certificate:
        """A new issuing key. Raises EnrollError E306.

        What earlier ones signed stays valid until it expires; if they are `compromised`, devices will refuse it.
        """
        if self.about.signer:
            raise EnrollError("E306", "the issuing key is the signer command's")
        old = read_certificates(self.folder / "issuing.pem")[0]
        private_files.write_file(self.folder / f"issuing.{old.serial_number:x}.pem", certificates.text([old]))
        federation = self.about.federation
        root = self.root_pair(passphrase)
        made = self._make_issuing(federation, root, now, days)
        self._renew_server(self.about, now)
        if compromised:
            self._revoke([one for one in self.issuers()[:-1] if one != made], root, now)
        return made

    def rotate_root(self, now: float, passphrase: str = "", *, compromised: bool = False) -> x509.Certificate:
        """A new root, signed by the old one too, and a new issuing key below it; `compromised` as for `rotate`.

        Raises EnrollError E306.
        """
        if self.about.signer:
            raise EnrollError("E306", "the root is the outside authority's")
        old, old_key = self.root_pair(passphrase)
        depth = old.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length or 0
        if depth < ROOT_DEPTH or len(self.crosses()) >= ROOT_DEPTH - 1:
            raise EnrollError("E306", "devices would not follow to yet another root: found a new federation")
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
        """Encrypt what lies in the clear, and replace the passphrase; the names of the files that were written.

        May be repeated with the same two after an interruption. Raises EnrollError E306 or E323.
        """
        done = []
        root = self.folder / "root.key"
        if root.exists():  # first, while the lock still takes the old one
            data = private_files.read_private(root)
            key = self._either(lambda word: identity.load_ec_key(unseal(data, word) if is_sealed(data) else data, word),
                               old, new)  # fmt: skip
            private_files.write_file(root, _root_key(key, new))
            done.append(root.name)
        if self.lock.exists:
            self._either(self.lock.open, old, new)
        self.lock.write(new)
        for name in ("issuing.key", "server.pem", "operator.key"):
            path = self.folder / name
            data = private_files.read_private(path) if path.exists() else b""
            if b"-----BEGIN PRIVATE KEY-----" in data:
                key = identity.load_ec_key(data)
                begun = b"-----BEGIN CERTIFICATE-----" in data
                chain = certificates.text(x509.load_pem_x509_certificates(data)) if begun else b""
                private_files.write_file(path, identity.pem(key, self.lock.password) + chain)
                done.append(name)
        return [*done, "lock.json"]

    def renew_server(self, now: float) -> None:
        """Replace the server's certificate if less than a third of its life is left, or if it is of the future: it was
        made while this machine's clock was ahead."""
        held = certificates.describe(read_certificates(self.folder / "server.pem")[0])
        if now < held.not_before or now > held.not_after - SERVER_DAYS * DAY / 3:
            self._renew_server(self.about, now)

    def crl(self, entries: Iterable[tuple[str, float]], now: float) -> bytes:
        """The revocation list for third parties, PEM. Raises EnrollError E306 with a signer command."""
        if self.about.signer:
            raise EnrollError("E306", "the outside authority publishes its own list")
        return certificates.revocations(entries, now, self.issuing_pair())

    def _make_root(self, federation: str, passphrase: str, now: float) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        root = certificates.authority(f"{federation} root", key, ROOT_DAYS, now, ROOT_DEPTH)
        private_files.write_file(self.folder / "root.key", _root_key(key, passphrase))
        private_files.write_file(self.folder / "root.pem", certificates.text([root]))
        self._make_issuing(federation, (root, key), now)

    def _revoke(self, gone: Sequence[x509.Certificate], root: Pair, now: float) -> None:
        before = self.revoked().encode()
        numbers = x509.load_pem_x509_crl(before).extensions.get_extension_for_class(x509.CRLNumber) if before else None
        # The time keeps numbers growing even if the list before this one was lost.
        number = max(int(now), numbers.value.crl_number + 1 if numbers else 0)
        entries = [(f"{one.serial_number:x}", now) for one in gone]
        listed = certificates.revocations(entries, now, root, days=ROOT_DAYS, number=number)
        private_files.write_file(self.folder / "revoked.pem", listed + certificates.text(gone))

    def _make_issuing(self, federation: str, root: Pair, now: float, days: float = ISSUING_DAYS) -> x509.Certificate:
        key = ec.generate_private_key(ec.SECP384R1())
        made = certificates.authority(f"{federation} issuing", key, days, now, 0, root)
        # Key and certificate in one file: one rename replaces both, so that they never disagree.
        private_files.write_file(
            self.folder / "issuing.key", identity.pem(key, self.lock.password) + certificates.text([made])
        )
        private_files.write_file(self.folder / "issuing.pem", certificates.text([made]))
        return made

    def _renew_server(self, about: About, now: float) -> None:
        key = identity.new_tls_key()
        if about.signer:
            asked = certificates.server_request(key, about.hosts)
            chain = signer.ask(about.signer, asked, self.root, usage="server", node="", days=SERVER_DAYS, now=now)
            self._remember(chain[1:])
        else:
            issuing = self.issuing_pair()
            names = certificates.host_names(about.hosts)
            chain = [certificates.leaf(key.public_key(), names, True, SERVER_DAYS, now, issuing), issuing[0]]
            chain += self.crosses()
        private_files.write_file(
            self.folder / "server.pem", certificates.text(chain) + identity.pem(key, self.lock.password)
        )

    @staticmethod
    def _either(work: Callable[[str], T], old: str, new: str) -> T:
        """With the old passphrase; or with the new one, which an interrupted call has set already."""
        try:
            return work(old)
        except EnrollError:
            try:
                return work(new)
            except EnrollError:
                raise EnrollError("E323") from None

    def _remember(self, intermediates: Sequence[x509.Certificate]) -> None:
        for certificate in intermediates:
            path = self.folder / f"issuing.{certificate.serial_number:x}.pem"
            if not path.exists():
                private_files.write_file(path, certificate.public_bytes(Encoding.PEM))


def _root_key(key: ec.EllipticCurvePrivateKey, passphrase: str) -> bytes:
    return seal(identity.pem(key), passphrase) if passphrase else identity.pem(key)
