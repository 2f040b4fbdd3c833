"""X.509 certificates of a federation: creating and reading root, issuing, server and client certificates and
requests."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhet.federation.common.errors import EnrollError

URN = "urn:fedhet:node:"
DAY = 86_400.0
BACKDATE = 120.0
"""Seconds before now at which a certificate's validity begins, for devices whose clock is slightly behind."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """The fields of a leaf certificate: serial in hexadecimal, node id, validity in seconds since 1970, public key as
    an uncompressed point."""

    serial: str
    node: str
    not_before: float
    not_after: float
    public: bytes

    @property
    def renew_at(self) -> float:
        """Time to renew, in seconds since 1970: two thirds of the lifetime, plus or minus a tenth of it, so that
        clients that enrolled together do not renew together."""
        share = 2 / 3 + (int(self.serial[-4:], 16) / 0xFFFF - 0.5) * 0.2
        return self.not_before + share * (self.not_after - self.not_before)


def request(key: ec.EllipticCurvePrivateKey, node: str) -> bytes:
    """A device's certificate request, PEM."""
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URN + node)])
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(name, critical=True)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def server_request(key: ec.EllipticCurvePrivateKey, hosts: Iterable[str]) -> bytes:
    """A server's certificate request for names and addresses, PEM."""
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return made.add_extension(host_names(hosts), critical=True).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def check_request(pem: bytes, node: str) -> x509.CertificateSigningRequest:
    """Parse a certificate request and check that it asks for this node's name alone, with a P-256 key. Raises E110."""
    try:
        csr = x509.load_pem_x509_csr(pem)
        names = [e.value for e in csr.extensions]
        key, signed = csr.public_key(), csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, x509.UnsupportedGeneralNameType, x509.DuplicateExtension) as error:
        raise EnrollError("E110", f"it cannot be read: {error}"[:160]) from None
    if not signed:
        raise EnrollError("E110", "it is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrollError("E110", "its key must be EC P-256")
    wanted = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URN + node)])
    if names != [wanted] or len(csr.subject):
        raise EnrollError("E110", f"it must name {URN}{node} and nothing else")
    return csr


def authority(
    name: str, subject: ec.EllipticCurvePrivateKey, days: float, now: float, depth: int,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
) -> x509.Certificate:  # fmt: skip
    """A CA certificate with path length `depth`; self-signed without an issuer."""
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    made = _builder(subject.public_key(), title, issuer[0].subject if issuer else title, days, now)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
    made = made.add_extension(usage, critical=True)
    signer = issuer[1] if issuer else subject
    made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    return made.sign(signer, hashes.SHA384())


def leaf(
    public: ec.EllipticCurvePublicKey, names: x509.SubjectAlternativeName, server: bool, days: float, now: float,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
) -> x509.Certificate:  # fmt: skip
    """A certificate for a server or for a client; it never outlives its issuer."""
    days = min(days, (issuer[0].not_valid_after_utc.timestamp() - now) / DAY)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    made = _builder(public, x509.Name([]), issuer[0].subject, days, now).add_extension(names, critical=True)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(usage, critical=True).add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer[1].public_key())
    return made.add_extension(key_id, critical=False).sign(issuer[1], hashes.SHA256())


def read_client(certificate: x509.Certificate, issuers: Sequence[x509.Certificate]) -> Leaf:
    """The fields of a client certificate that one of these issuers signed; dates are not checked. Raises E208."""
    if not any(issued_by(certificate, issuer) for issuer in issuers):
        raise EnrollError("E208", "none of its issuers signed it")
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType, x509.DuplicateExtension) as error:
        raise EnrollError("E208", str(error)[:160]) from None
    if list(purposes) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise EnrollError("E208", "it is not a client's certificate")
    if len(names) != 1 or len(uris) != 1 or not uris[0].startswith(URN):
        raise EnrollError("E208", "it does not name one node")
    return describe(certificate, uris[0].removeprefix(URN))


def describe(certificate: x509.Certificate, node: str = "") -> Leaf:
    """Serial, dates and public key of a certificate, unchecked."""
    dates = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return Leaf(f"{certificate.serial_number:040x}", node, *dates, public_bytes(certificate))


def public_bytes(certificate: x509.Certificate) -> bytes:
    """A certificate's key as an uncompressed point. Raises EnrollError E208 if it is not EC."""
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise EnrollError("E208", "its key is not EC")
    return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def revocations(
    entries: Iterable[tuple[str, float]], now: float, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    *, days: float = 1.0, number: int | None = None,
) -> bytes:  # fmt: skip
    """A signed certificate revocation list, PEM, of (hexadecimal serial, second of revocation), valid for `days`.

    `number` is its CRL number, which must increase from list to list.
    """
    made = x509.CertificateRevocationListBuilder().issuer_name(issuer[0].subject)
    made = made.last_update(_when(now)).next_update(_when(now + days * DAY))
    if number is not None:
        made = made.add_extension(x509.CRLNumber(number), critical=False)
    for serial, at in entries:
        row = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(_when(at))
        made = made.add_revoked_certificate(row.build())
    return made.sign(issuer[1], hashes.SHA256()).public_bytes(Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, in hexadecimal, as tokens contain it."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def text(certificates: Iterable[x509.Certificate]) -> bytes:
    """A chain as PEM, leaf first."""
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer's name and key are those that signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _builder(
    public: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, days: float, now: float
) -> x509.CertificateBuilder:
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(_when(now - BACKDATE)).not_valid_after(_when(now + days * DAY))
    return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def host_names(hosts: Iterable[str]) -> x509.SubjectAlternativeName:
    """Subject alternative names of a server: IP addresses and DNS names. Raises ValueError for a non-ASCII name."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _when(second: float) -> datetime:
    return datetime.fromtimestamp(int(second), UTC)
