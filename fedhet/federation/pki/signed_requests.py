"""Authenticated requests: signed bodies before a device has a certificate, signed headers ("sealed") afterwards.

A signed body contains time, nonce and an Ed25519 signature over its canonical form. A sealed request has headers with
its certificate and a signature by the certificate's key over

    H(domain, method, path, time, nonce, SHA-256(body))

so it remains valid through a proxy that terminates TLS, and it can be neither altered, redirected nor replayed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki.canonical_json import b64, canonical, digest, unb64
from fedhet.federation.pki.identity import Identity, verify

DOMAIN = "fedhet.request.v1"
CERTIFICATE, TIME, NONCE, SIGNATURE = (f"x-fedhet-{name}" for name in ("certificate", "time", "nonce", "signature"))
NONCE_CHARACTERS = 32
MAX_TIME = 1 << 40
"""Upper bound of a plausible time, in seconds since 1970."""
_ECDSA = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Seal:
    """The headers of a sealed request, parsed and not yet verified."""

    certificate: bytes
    time: int
    nonce: str
    signature: bytes


def sign_body(own: Identity, purpose: str, body: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Add time, nonce and signature to a body, for one purpose ("enrol", "poll", "renew", "rotate", "profile")."""
    full = {**body, "time": int(now), "nonce": secrets.token_hex(16)}
    return {**full, "signature": b64(own.sign(f"fedhet.{purpose}.v1", canonical(full)))}


def check_body(public: bytes, purpose: str, body: Mapping[str, Any], now: float, skew: float, code: str) -> str:
    """Verify a body that this key signed for this purpose within `skew` seconds of `now`; returns its nonce.

    Raises EnrollError E203, E115, or `code` for a wrong signature.
    """
    rest = {k: v for k, v in body.items() if k != "signature"}
    try:
        when, nonce, signature = body["time"], body["nonce"], unb64(body["signature"])
        if type(when) is not int or not 0 <= when < MAX_TIME:
            raise ValueError("time is not a number of seconds")
        if not isinstance(nonce, str) or len(nonce) != NONCE_CHARACTERS:
            raise ValueError(f"nonce is not a string of {NONCE_CHARACTERS} characters")
        message = canonical(rest)
    except (KeyError, TypeError, ValueError) as error:
        raise EnrollError("E115", f"{type(error).__name__}: {error}"[:120]) from None
    if not verify(public, signature, f"fedhet.{purpose}.v1", message):
        raise EnrollError(code)
    in_time(when, now, skew)
    return nonce


def seal(
    key: ec.EllipticCurvePrivateKey, certificate: bytes, method: str, path: str, body: bytes, now: float
) -> dict[str, str]:
    """The headers of a sealed request; `certificate` is the leaf in DER form."""
    when, nonce = int(now), secrets.token_hex(16)
    signature = key.sign(_message(method, path, when, nonce, body), _ECDSA)
    return {CERTIFICATE: b64(certificate), TIME: str(when), NONCE: nonce, SIGNATURE: b64(signature)}


def read(headers: Mapping[str, str]) -> Seal:
    """Parse the headers of a sealed request (lower-case names). Raises EnrollError E115."""
    try:
        nonce = headers[NONCE]
        if len(nonce) != NONCE_CHARACTERS or len(headers[CERTIFICATE]) > 8192 or len(headers[TIME]) > 12:
            raise ValueError("nonce, certificate or time of a wrong length")
        return Seal(unb64(headers[CERTIFICATE]), int(headers[TIME]), nonce, unb64(headers[SIGNATURE]))
    except (KeyError, ValueError) as error:
        raise EnrollError("E115", f"seal: {type(error).__name__} {error}"[:120]) from None


def check(given: Seal, public: bytes, method: str, path: str, body: bytes, now: float, skew: float) -> None:
    """Verify that a certificate's key (an uncompressed P-256 point) sealed this request within `skew` seconds of `now`.

    Raises EnrollError E205 or E203.
    """
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
        key.verify(given.signature, _message(method, path, given.time, given.nonce, body), _ECDSA)
    except (InvalidSignature, ValueError):
        raise EnrollError("E205") from None
    in_time(given.time, now, skew)


def in_time(when: float, now: float, skew: float) -> None:
    """Raises EnrollError E203 if the two times differ by more than `skew` seconds."""
    if abs(now - when) > skew:
        late = int(now - when)
        raise EnrollError(
            "E203", f"{abs(late)} s {'behind' if late > 0 else 'ahead'}, allowed {skew:g} s", seconds=late
        )


def _message(method: str, path: str, when: int, nonce: str, body: bytes) -> bytes:
    parts = method.encode(), path.encode(), str(when).encode(), nonce.encode(), hashlib.sha256(body).digest()
    return digest(DOMAIN, *parts)
