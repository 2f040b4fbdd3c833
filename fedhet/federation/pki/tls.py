"""TLS contexts of both sides: what a server shows, and whom a client trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

from fedhet.federation.common import private_files

TLS = ssl.TLSVersion.TLSv1_3
"""The oldest TLS that either side speaks."""


def trusting(root: bytes | Path) -> ssl.SSLContext:
    """A client context of TLS 1.3 that checks names and trusts one root, or what a device's file says (trust.py)."""
    if isinstance(root, Path):
        private_files.read_private(root)
        context = ssl.create_default_context(cafile=str(root))
    else:
        context = ssl.create_default_context(cadata=root.decode("ascii"))
    context.minimum_version = TLS
    return context


def serving(certificate: Path, password: str = "") -> ssl.SSLContext:
    """A server's context of TLS 1.3 with the chain and key in one PEM file, which may be encrypted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = TLS
    context.load_cert_chain(certificate, password=lambda: password)  # else OpenSSL asks for it at the terminal
    return context


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    return host == "localhost" or host.strip("[]") == "::1" or host.startswith("127.")
