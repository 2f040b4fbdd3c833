"""TLS 1.3 contexts: a server's with its certificate, a client's with its trust anchors."""

from __future__ import annotations

import ssl
from pathlib import Path

from fedhet.federation.common import private_files

MIN_VERSION = ssl.TLSVersion.TLSv1_3
"""The oldest version that either side accepts."""


def trusting(root: bytes | Path) -> ssl.SSLContext:
    """A client context that checks names and trusts one root (PEM), or the trust anchors of a device's file
    (trust.py)."""
    if isinstance(root, Path):
        private_files.read_private(root)
        context = ssl.create_default_context(cafile=str(root))
    else:
        context = ssl.create_default_context(cadata=root.decode("ascii"))
    context.minimum_version = MIN_VERSION
    return context


def serving(certificate: Path, password: str = "") -> ssl.SSLContext:
    """A server context with the chain and the key in one PEM file; `password` decrypts the key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MIN_VERSION
    context.load_cert_chain(certificate, password=lambda: password)  # or OpenSSL would ask at the terminal
    return context


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback one."""
    return host == "localhost" or host.strip("[]") == "::1" or host.startswith("127.")
