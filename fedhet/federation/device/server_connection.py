"""A device's HTTPS connection to its federation's server, and the first contact, which authenticates the server.

The root is fetched over an unauthenticated connection that sends nothing secret. If its hash is the token's, a second
connection is made, which trusts only that root; the token's secret is sent there.
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

TIMEOUT_S = 20.0
"""Seconds that one request may take."""
MOST_ROOTS = 8
"""Earlier roots in a server's answer that are compared, at most."""
MAX_ANSWER_BYTES = 1 << 20
"""Largest answer, in bytes."""
CERT_REJECTED = 28
"""OpenSSL's X509_V_ERR_CERT_REJECTED: the chain contains a certificate that trust.py makes it reject."""


def fetch_root(url: str, sha256: str) -> bytes:
    """Fetch the server's root certificate, PEM. Raises EnrollError E103 unless its SHA-256 is the expected one."""
    nobody = ssl.create_default_context()
    nobody.check_hostname = False
    nobody.verify_mode = ssl.CERT_NONE
    with Link(url, nobody) as link:
        answer = link.call("GET", "/v1/enroll/root")
    earlier = answer.get("earlier")  # the token may be older than the present root
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
    """An HTTPS connection that trusts one root (PEM), or uses a given context. Use it as a context manager."""

    def __init__(self, url: str, trust: bytes | ssl.SSLContext) -> None:
        context = trust if isinstance(trust, ssl.SSLContext) else trusting(trust)
        host = httpx.URL(url).host
        self._client = httpx.Client(base_url=url, verify=context, timeout=TIMEOUT_S, trust_env=not is_loopback(host))

    def __enter__(self) -> Link:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def call(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a request; returns the JSON object of the answer. Raises the EnrollError that it contains, E307 or
        E311."""
        try:
            with self._client.stream(method, path, content=body, headers=dict(headers or {})) as answer:
                status, content = answer.status_code, b""
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > MAX_ANSWER_BYTES:
                        raise EnrollError("E311", "its answer is too long")
        except httpx.HTTPError as error:
            raise _enroll_error(error, str(self._client.base_url)) from None
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
        """Post a body and read `size` bytes. Raises the EnrollError of the answer, E307 or E311."""
        try:
            answer = self._client.post(path, content=body, headers=dict(headers))
        except httpx.HTTPError as error:
            raise _enroll_error(error, str(self._client.base_url)) from None
        if answer.status_code >= 400:
            try:
                raise EnrollError.from_dict(answer.json())
            except ValueError:
                raise EnrollError("E311", f"status {answer.status_code}") from None
        if len(answer.content) != size:
            raise EnrollError("E311", f"{len(answer.content)} bytes, not {size}")


def _enroll_error(error: httpx.HTTPError, url: str) -> EnrollError:
    """The EnrollError for a failed connection: an invalid certificate has other codes than no answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            # 9: not valid yet, 10: expired; this machine's clock is the likelier cause.
            code = {9: "E203", 10: "E203", CERT_REJECTED: "E219"}.get(cause.verify_code, "E103")
            return EnrollError(code, f"{url}: {cause.verify_message}")
        cause = cause.__cause__ or cause.__context__
    return EnrollError("E307", f"{url}: {error}"[:200])
