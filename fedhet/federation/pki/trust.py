"""A device's trust anchors: the federation's roots, less the issuing keys that a root has revoked.

root.pem      the roots, and each revoked issuing certificate in a form that makes OpenSSL reject it
revoked.pem   the newest revocation list that a root signed, and the certificates on it

A stolen issuing key can sign server certificates until its own certificate expires. A root's revocation list ends that
earlier: the device receives it with any answer, stores it, and never accepts an older list or a revoked certificate.
TLS libraries do not check the status of intermediate certificates by themselves, so the revocations are in the trust
file: a TRUSTED CERTIFICATE with rejected purposes makes OpenSSL refuse every chain through its name and key, whatever
else is sent. This applies to every program that is given the file, including Flower's own.
"""

from __future__ import annotations

from base64 import encodebytes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates

_OIDS = bytes.fromhex("06082b06010505070301 06082b06010505070302 0604551d2500".replace(" ", ""))
"""DER of serverAuth, clientAuth and anyExtendedKeyUsage."""
_REJECT = b"\xa0" + bytes([len(_OIDS)]) + _OIDS
_AUX = b"\x30" + bytes([len(_REJECT)]) + _REJECT
"""X509_CERT_AUX of OpenSSL: no purpose is trusted, these are rejected."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The two files in a device's folder."""

    folder: Path

    @property
    def file(self) -> Path:
        """The trust file for TLS clients."""
        return self.folder / "root.pem"

    def roots(self) -> list[x509.Certificate]:
        """The roots, the newest first. Raises EnrollError E305 or E306."""
        return x509.load_pem_x509_certificates(private_files.read_private(self.file))

    def revoked(self) -> list[x509.Certificate]:
        """The revoked issuing certificates."""
        path = self.folder / "revoked.pem"
        return _certificates(private_files.read_private(path)) if path.exists() else []

    def write(self, roots: Sequence[x509.Certificate]) -> None:
        """Trust these roots; revoked certificates stay revoked."""
        content = certificates.text(roots) + b"".join(_rejected(one) for one in self.revoked())
        if not self.file.exists() or self.file.read_bytes() != content:
            private_files.write_file(self.file, content)

    def learn(self, text: bytes) -> None:
        """Store a revocation list followed by its certificates, PEM; a list older than the stored one changes nothing.

        Raises EnrollError E311 unless a trusted root signed the list and each certificate on it.
        """
        roots = self.roots()
        number, serials = _read(text, roots)
        by_serial = {one.serial_number: one for one in _certificates(text)}
        if serials - set(by_serial):
            raise EnrollError("E311", "the revocation list comes without its certificates")
        if not all(any(certificates.issued_by(by_serial[serial], root) for root in roots) for serial in serials):
            raise EnrollError("E311", "the revocation list names certificates that no trusted root issued")
        path = self.folder / "revoked.pem"
        if number > self._number(roots):
            earlier = [one for one in self.revoked() if one.serial_number not in serials]
            begun = text[: text.index(b"-----END X509 CRL-----")] + b"-----END X509 CRL-----\n"
            private_files.write_file(
                path, begun + certificates.text([*(by_serial[serial] for serial in sorted(serials)), *earlier])
            )
        self.write(roots)  # also if an earlier call was interrupted in between

    def check(self, chain: Sequence[x509.Certificate]) -> None:
        """Raises EnrollError E219 if a certificate of a chain, leaf first, is revoked."""
        revoked_keys = {_name_and_key(one) for one in self.revoked()}
        if any(_name_and_key(one) in revoked_keys for one in chain[1:]):
            raise EnrollError("E219")

    def _number(self, roots: Sequence[x509.Certificate]) -> int:
        """The number of the stored list; -1 without one, or if no trusted root signed it."""
        path = self.folder / "revoked.pem"
        try:
            return _read(path.read_bytes(), roots)[0] if path.exists() else -1
        except EnrollError:
            return -1


def _read(text: bytes, roots: Sequence[x509.Certificate]) -> tuple[int, set[int]]:
    """A list's number and serial numbers. Raises EnrollError E311 unless one of the roots signed it."""
    try:
        listed = x509.load_pem_x509_crl(text)
        number = listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound) as error:
        raise EnrollError("E311", f"its revocation list cannot be read: {error}"[:160]) from None
    keys = [root.public_key() for root in roots]
    if not any(isinstance(key, ec.EllipticCurvePublicKey) and listed.is_signature_valid(key) for key in keys):
        raise EnrollError("E311", "no trusted root signed its revocation list")
    return number, {row.serial_number for row in listed}


def _certificates(text: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(text) if b"-----BEGIN CERTIFICATE-----" in text else []


def _rejected(certificate: x509.Certificate) -> bytes:
    body = encodebytes(certificate.public_bytes(Encoding.DER) + _AUX)
    return b"-----BEGIN TRUSTED CERTIFICATE-----\n" + body + b"-----END TRUSTED CERTIFICATE-----\n"


def _name_and_key(certificate: x509.Certificate) -> tuple[x509.Name, bytes]:
    """What identifies an issuer. The certificate's bytes do not: an ECDSA signature has two valid forms."""
    return certificate.subject, certificates.public_bytes(certificate)
