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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import ca_signer as signer
from fedhet.federation.pki import certificates, identity
from fedhet.federation.pki.certificates import DAY, Leaf
from fedhet.federation.pki.key_encryption import Lock, check, is_sealed, seal, unseal

ROOT_DAYS, ISSUING_DAYS, SERVER_DAYS = 3650.0, 90.0, 30.0
NOTICE_DAYS = 30.0
"""So long before the issuing certificate expires, and with it every other, the operator is told."""
EXPIRING = (
    "the issuing key expires in %.0f days, and every certificate with it: bring root.key back for `fedhet ca rotate`"
)
ROOT_DEPTH = 4
"""Authorities below a root: the issuing key, and up to three roots after it."""
MOST_NAME = 56
"""Bytes of a federation's name: with " issuing" after it, as many as an X.509 common name may have."""
Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class About:
    """What an authority is for: public endpoint "host:port", the server's names, the signer command or ()."""

    federation: str
    endpoint: str
    hosts: tuple[str, ...]
    signer: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority in a folder of mode 0700."""

    folder: Path
    lock: Lock = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lock", Lock(self.folder))

    @classmethod
    def create(
        cls, folder: Path, federation: str, endpoint: str, hosts: Sequence[str], now: float, *, passphrase: str = "",
        root: Path | None = None, command: Sequence[str] = (),
    ) -> Authority:  # fmt: skip
        """Make root, issuing and server certificates; or, given a foreign root and a signer command, the server's.

        Nothing is written for what `check_new` refuses, and nothing stays of what fails later, as a signer may.
        """
        cls.check_new(folder, federation, hosts, passphrase=passphrase, root=root, command=command)
        with private_files.all_or_none(folder):
            made = cls(folder)
            if passphrase:
                made.lock.write(passphrase)
            if root is not None:
                private_files.write_file(folder / "root.pem", certificates.text([_foreign_root(root)]))
            else:
                made._make_root(federation, passphrase, now)
            about = About(federation, endpoint, tuple(hosts), tuple(command))
            made._renew_server(about, now)
            private_files.write_file(folder / "ca.json", json.dumps(asdict(about), indent=1) + "\n")
        return made

    @staticmethod
    def check_new(
        folder: Path, federation: str, hosts: Sequence[str], *, passphrase: str = "", root: Path | None = None,
        command: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """What `create` needs, before anything is written. Raises EnrollError E306, E319 or E323, and OSError for a
        root file that cannot be read."""
        if (folder / "ca.json").exists():
            raise EnrollError("E306", f"{folder} holds an authority already")
        if bool(root) != bool(command):
            raise EnrollError("E306", "a root file and a signer command go together")
        if (size := len(federation.encode())) > MOST_NAME:
            raise EnrollError("E319", f"--federation has {size} bytes, at most {MOST_NAME}")
        try:
            certificates.host_names(hosts)
        except ValueError:
            bad = next(host for host in hosts if not host.isascii())
            raise EnrollError("E319", f"the server's name {bad!r} is not ASCII: give its xn-- form") from None
        if passphrase:
            check(passphrase)
        if root is not None:
            _foreign_root(root)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """An existing authority. Raises EnrollError E306."""
        if not (folder / "ca.json").exists():
            raise EnrollError("E306", f"{folder} holds no authority: run fedhet ca init")
        private_files.private_folder(folder)
        return cls(folder)

    @property
    def about(self) -> About:
        """What it is for."""
        path = self.folder / "ca.json"
        with private_files.sound(path):
            given = json.loads(path.read_text())
            return About(given["federation"], given["endpoint"], tuple(given["hosts"]), tuple(given["signer"]))

    @property
    def root(self) -> x509.Certificate:
        """The root certificate."""
        return _certificates(self.folder / "root.pem")[0]

    @property
    def fingerprint(self) -> str:
        """The root's SHA-256, which tokens hold."""
        return certificates.fingerprint(self.root)

    def crosses(self) -> list[x509.Certificate]:
        """The present root as signed by the one before it, and so on to the first; empty if there was one alone."""
        path = self.folder / "cross.pem"
        return _certificates(path) if path.exists() else []

    def roots(self) -> list[x509.Certificate]:
        """Every root there was, the present one first: an invitation may hold the hash of an earlier one."""
        earlier = [_certificates(path)[0] for path in sorted(self.folder.glob("root.*.pem"))]
        return [self.root, *earlier]

    def issuers(self) -> list[x509.Certificate]:
        """Every certificate that may have signed a client's: the working one, retired ones, and the root."""
        found = [_certificates(path)[0] for path in sorted(self.folder.glob("issuing*.pem"))]
        return [*found, self.root]

    def issue(self, csr: bytes, node: str, days: float, now: float) -> tuple[bytes, Leaf]:
        """A client's certificate for a checked request: the chain as PEM, and what it says. Raises E110, E309."""
        checked = certificates.check_request(csr, node)
        if command := self.about.signer:
            chain = signer.ask(command, csr, self.root, usage="client", node=node, days=days, now=now)
            self._remember(chain[1:])
            return certificates.text(chain), certificates.read_client(chain[0], self.issuers())
        public, names = checked.public_key(), checked.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert isinstance(public, ec.EllipticCurvePublicKey)  # check_request saw to it
        issuing = self._issuing()
        made = certificates.leaf(public, names.value, False, days, now, issuing)
        return certificates.text([made, issuing[0]]), certificates.describe(made, node)

    def read(self, der: bytes) -> Leaf:
        """What a client's certificate says, if it is ours. Dates are not judged. Raises EnrollError E208."""
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError:
            raise EnrollError("E208", "it cannot be read") from None
        return certificates.read_client(certificate, self.issuers())

    def left(self, now: float) -> float | None:
        """Days until the issuing certificate expires; None if an outside authority sees to that."""
        path = self.folder / "issuing.pem"
        if not path.exists():
            return None
        held = _certificates(path)[0]
        return (held.not_valid_after_utc.timestamp() - now) / DAY

    def revoked(self) -> str:
        """The root's list of issuing certificates that devices must not believe, and these certificates, PEM; or ""."""
        path = self.folder / "revoked.pem"
        return path.read_text() if path.exists() else ""

    def rotate(
        self, now: float, passphrase: str = "", *, compromised: bool = False, days: float = ISSUING_DAYS
    ) -> x509.Certificate:
        """A new issuing key. Raises EnrollError E306.

        What earlier ones signed stays valid until it expires; if they are `compromised`, devices will refuse it.
        """
        if self.about.signer:
            raise EnrollError("E306", "the issuing key is the signer command's")
        old = _certificates(self.folder / "issuing.pem")[0]
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

    @property
    def asks(self) -> bool:
        """Whether a passphrase is needed for what its keys do, or for a new issuing key."""
        root = self.folder / "root.key"
        return self.lock.exists or (root.exists() and b"BEGIN PRIVATE KEY" not in private_files.read_private(root))

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

    def server_key(self) -> ec.EllipticCurvePrivateKey:
        """The key in server.pem."""
        path, password = self.folder / "server.pem", self.lock.password
        with private_files.sound(path):
            return identity.load_ec_key(private_files.read_private(path), password)

    def renew_server(self, now: float) -> None:
        """Replace the server's certificate if less than a third of its life is left, or if it is of the future: it was
        made while this machine's clock was ahead."""
        held = certificates.describe(_certificates(self.folder / "server.pem")[0])
        if now < held.not_before or now > held.not_after - SERVER_DAYS * DAY / 3:
            self._renew_server(self.about, now)

    def crl(self, entries: Iterable[tuple[str, float]], now: float) -> bytes:
        """The revocation list for third parties, PEM. Raises EnrollError E306 with a signer command."""
        if self.about.signer:
            raise EnrollError("E306", "the outside authority publishes its own list")
        return certificates.revocations(entries, now, self._issuing())

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

    def _issuing(self) -> Pair:
        path = self.folder / "issuing.key"
        data, password = private_files.read_private(path), self.lock.password
        with private_files.sound(path):
            return x509.load_pem_x509_certificate(data), identity.load_ec_key(data, password)

    def root_pair(self, passphrase: str) -> Pair:
        """The root and its key, which may have a passphrase of its own. Raises EnrollError E306 or E323."""
        root = self.root
        for name in ("root.key", "root.key.new"):  # the second if a change of the root was interrupted
            if (self.folder / name).exists():
                data = private_files.read_private(self.folder / name)
                data = unseal(data, passphrase) if is_sealed(data) else data
                key = identity.load_ec_key(data, passphrase)
                if key.public_key() == root.public_key():
                    return root, key
        raise EnrollError("E306", f"{self.folder} does not hold the root's key: bring it back for this command")

    def _renew_server(self, about: About, now: float) -> None:
        key = identity.new_tls_key()
        if about.signer:
            asked = certificates.server_request(key, about.hosts)
            chain = signer.ask(about.signer, asked, self.root, usage="server", node="", days=SERVER_DAYS, now=now)
            self._remember(chain[1:])
        else:
            issuing = self._issuing()
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


def _foreign_root(path: Path) -> x509.Certificate:
    """The root certificate in a file that the operator names. Raises EnrollError E319."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise EnrollError("E319", f"--root {path} holds no certificate in PEM form") from None


def _certificates(path: Path) -> list[x509.Certificate]:
    """Those in a PEM file, at least one. Raises EnrollError E324 if the file is damaged."""
    with private_files.sound(path):
        return x509.load_pem_x509_certificates(path.read_bytes())
