"""What a new certificate authority needs, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates
from fedhet.federation.pki.key_encryption import check

MAX_NAME_BYTES = 56
"""Largest name of a federation: an X.509 common name has at most 64 bytes, and " issuing" is appended."""


def check_new(
    folder: Path, federation: str, hosts: Sequence[str], *, passphrase: str = "", root: Path | None = None,
    command: Sequence[str] = (),
) -> None:  # fmt: skip
    """Check the arguments of `Authority.create`. Raises EnrollError E306, E319 or E323, and OSError for a root file
    that cannot be read."""
    if (folder / "ca.json").exists():
        raise EnrollError("E306", f"{folder} already contains an authority")
    if bool(root) != bool(command):
        raise EnrollError("E306", "a root file and a signer command go together")
    if (size := len(federation.encode())) > MAX_NAME_BYTES:
        raise EnrollError("E319", f"--federation has {size} bytes, at most {MAX_NAME_BYTES}")
    try:
        certificates.host_names(hosts)
    except ValueError:
        bad = next(host for host in hosts if not host.isascii())
        raise EnrollError("E319", f"the server's name {bad!r} is not ASCII: give its xn-- form") from None
    if passphrase:
        check(passphrase)
    if root is not None:
        foreign_root(root)


def foreign_root(path: Path) -> x509.Certificate:
    """The root certificate in a PEM file that the operator names. Raises EnrollError E319."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise EnrollError("E319", f"--root {path} contains no certificate in PEM form") from None
