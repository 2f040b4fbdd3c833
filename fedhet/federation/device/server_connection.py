"""A device's connection to its federation. The server proves itself first: its root must be the one in the token.

The root is fetched over a connection that trusts nobody and carries nothing. Only if its hash is the token's is a
second connection made, which trusts that root alone; the secret travels there.
"""

from __future__ import annotations

import hmac
import json
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx
from cryptography import x509

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates
from fedhet.federation.pki.tls import is_loopback, trusting

SECONDS = 20.0
"""How long one request may take."""
MOST_ROOTS = 8
"""Earlier roots that are looked at."""
MOST = 1 << 20
"""Bytes of an answer that are read."""
REJECTED = 28
"""X509_V_ERR_CERT_REJECTED of OpenSSL: a chain leads through a certificate that trust.py has it reject."""


def fetch_root(url: str, sha256: str) -> bytes:
    """The server's root certificate, PEM. Raises EnrollError E103 unless its SHA-256 is the expected one."""
    nobody = ssl.create_default_context()
    nobody.check_hostname = False
    nobody.verify_mode = ssl.CERT_NONE
    with Link(url, nobody) as link:
        answer = link.call("GET", "/v1/enroll/root")
    earlier = answer.get("earlier")  # an invitation may be older than the present root
    shown = [answer.get("root"), *(earlier[:MOST_ROOTS] if isinstance(earlier, list) else [])]
    try:
        roots = [x509.load_pem_x509_certificate(str(one).encode()) for one in shown]
    except ValueError:
        raise EnrollError("E311", "it sent no root certificate") from None
    for root in roots:
        if hmac.compare_digest(certificates.fingerprint(root), sha256):
            return certificates.text([root])
    raise EnrollError("E103", f"expected {sha256[:16]}…, found {certificates.fingerprint(roots[0])[:16]}…")


class Link:
    """An HTTPS connection that trusts one root (PEM), or what a given context trusts."""

    def __init__(self, url: str, trust: bytes | ssl.SSLContext) -> None:
        context = trust if isinstance(trust, ssl.SSLContext) else trusting(trust)
        host = httpx.URL(url).host
        self._client = httpx.Client(base_url=url, verify=context, timeout=SECONDS, trust_env=not is_loopback(host))

    def __enter__(self) -> Link:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def call(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The JSON object that the server answers. Raises the EnrollError it sent, E307 or E311."""
        try:
            with self._client.stream(method, path, content=body, headers=dict(headers or {})) as answer:
                status, content = answer.status_code, b""
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > MOST:
                        raise EnrollError("E311", "its answer is too long")
        except httpx.HTTPError as error:
            raise _named(error, str(self._client.base_url)) from None
        try:
            value = json.loads(content)
        except ValueError:
            raise EnrollError("E311", f"status {status}, {content[:60]!r}") from None
        if status >= 400:
            raise EnrollError.from_dict(value)
        if not isinstance(value, dict):
            raise EnrollError("E311", "its answer is not an object")
        return value

    def fetch(self, path: str, body: bytes, headers: Mapping[str, str], size: int) -> None:
        """Post a body and read so many bytes of anything. Raises the EnrollError the server sent, E307 or E311."""
        try:
            answer = self._client.post(path, content=body, headers=dict(headers))
        except httpx.HTTPError as error:
            raise _named(error, str(self._client.base_url)) from None
        if answer.status_code >= 400:
            try:
                raise EnrollError.from_dict(answer.json())
            except ValueError:
                raise EnrollError("E311", f"status {answer.status_code}") from None
        if len(answer.content) != size:
            raise EnrollError("E311", f"{len(answer.content)} bytes, not {size}")


def _named(error: httpx.HTTPError, url: str) -> EnrollError:
    """A connection's failure by its cause: a certificate that does not hold is not the same as no answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            # 9 and 10: not valid yet, expired; more often this machine's clock than the server's certificate.
            code = {9: "E203", 10: "E203", REJECTED: "E219"}.get(cause.verify_code, "E103")
            return EnrollError(code, f"{url}: {cause.verify_message}")
        cause = cause.__cause__ or cause.__context__
    return EnrollError("E307", f"{url}: {error}"[:200])
