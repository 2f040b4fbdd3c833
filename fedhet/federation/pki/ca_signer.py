"""A certificate authority outside of fedhet: a command of the operator that reads a request and prints a chain.

    stdin   the request, PEM                      stdout   the certificate and its intermediates, PEM
    environment: FEDHET_USAGE client | server, FEDHET_NODE the node id or "", FEDHET_DAYS the wanted lifetime

The result is checked: it must have the request's key and names, be valid no longer than requested, and chain to the
root that the operator gave.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.process_supervisor import without_secrets
from fedhet.federation.pki import certificates

TIMEOUT_S = 60
"""Seconds that the command may take."""


def ask(
    command: Sequence[str], pem: bytes, root: x509.Certificate, *, usage: str, node: str, days: float, now: float
) -> list[x509.Certificate]:
    """Run the command on a request; returns its chain, leaf first and without the root. Raises EnrollError E309."""
    environment = {**without_secrets(), "FEDHET_USAGE": usage, "FEDHET_NODE": node, "FEDHET_DAYS": f"{days:g}"}
    try:
        result = subprocess.run(
            command, input=pem, capture_output=True, env=environment, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnrollError("E309", str(error)[:160]) from None
    if result.returncode:
        stderr = result.stderr.decode(errors="replace")[-160:]
        raise EnrollError("E309", f"{command[0]} ended with {result.returncode}: {stderr}")
    try:
        chain = x509.load_pem_x509_certificates(result.stdout)
    except ValueError as error:
        raise EnrollError("E309", f"{command[0]} printed no certificate: {error}"[:160]) from None
    chain = [c for c in chain if c != root]
    _check(chain, x509.load_pem_x509_csr(pem), root, now + days * certificates.DAY)
    return chain


def _check(
    chain: Sequence[x509.Certificate], csr: x509.CertificateSigningRequest, root: x509.Certificate, latest: float
) -> None:
    if not chain or not 1 <= len(chain) <= 2:
        raise EnrollError("E309", "it must print the certificate and at most one intermediate")
    if _key(chain[0]) != _key(csr):
        raise EnrollError("E309", "the certificate does not have the request's key")
    names = [c.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for c in (chain[0], csr)]
    if names[0] != names[1]:
        raise EnrollError("E309", "the certificate does not have the request's names")
    if chain[0].not_valid_after_utc.timestamp() > latest + certificates.DAY:
        raise EnrollError("E309", "the certificate is valid longer than requested")
    for child, parent in zip(chain, [*chain[1:], root], strict=True):
        if not certificates.issued_by(child, parent):
            raise EnrollError("E309", "the chain does not lead to the root")


def _key(holder: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
