"""The operator key, which signs the configurations that devices build, and its rotation.

The SuperLink and the programs that it starts have no access to it. Its public half is in `operator.json` next to it, as
a chain of successions: a device accepts the first key from its authenticated server, and every later one because a key
that it knows, or the federation's root, has signed it.

    ca/operator.key   EC P-384                ca/operator.json   {"line": [succession, ...]}, the first key first

A stolen key could sign its own successors, so the root begins a new term: keys of a later term replace those of an
earlier one, whatever the earlier ones have signed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.exclusive import alone
from fedhet.federation.pki import identity
from fedhet.federation.pki.canonical_json import b64, canonical, digest, unb64

if TYPE_CHECKING:
    from fedhet.federation.pki.ca_files import AuthorityFiles as Authority
    from fedhet.federation.pki.ca_files import Pair

DOMAIN = "fedhet.operator.v1"
KEY, NEXT, LINE = "operator.key", "operator.key.new", "operator.json"
LOCK = "operator.lock"
BY_ROOT = "fedhet ca rotate-operator --compromised"
"""The command that makes the root sign a new key."""
MAX_SUCCESSIONS = 64
"""Successions in a chain, at most: devices refuse longer ones."""


@dataclass(frozen=True, slots=True)
class Succession:
    """A key (base64 of DER), its term, and who signed it: "root", "operator" (the key before it in the chain) or
    "first" (unsigned). `signature` is base64."""

    public: str
    term: int = 0
    by: str = "first"
    signature: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key's DER form, in hexadecimal."""
        return hashlib.sha256(unb64(self.public)).hexdigest()

    def signed(self) -> bytes:
        """The bytes that are signed."""
        return canonical({"public": self.public, "term": self.term, "by": self.by})

    def signed_by(self, public: ec.EllipticCurvePublicKey) -> bool:
        """Whether `public` signed this succession."""
        return verified(public, self.signature, DOMAIN, self.signed())


def ensure(authority: Authority) -> tuple[Succession, ...]:
    """The chain of an authority's operator keys; a first key is made if there is none.

    Raises EnrollError E311 if the chain cannot be read, E320 if another process makes a key.
    """
    folder = authority.folder
    if not (folder / LINE).exists():
        with alone(folder / LOCK, "makes the operator key", 30.0):
            if not (folder / LINE).exists():  # a key without it is left by an interrupted call and unpublished
                key = ec.generate_private_key(ec.SECP384R1())
                _write_key(authority, key, KEY)
                _write_chain(folder, (Succession(public_text(key.public_key())),))
    return line(folder)


def line(folder: Path) -> tuple[Succession, ...]:
    """The chain in an authority's folder; empty if it has no operator key yet. Raises EnrollError E311."""
    path = folder / LINE
    return parse(path.read_text()) if path.exists() else ()


def load(authority: Authority) -> ec.EllipticCurvePrivateKey:
    """The present private key. Raises EnrollError E306 if it is missing."""
    newest = ensure(authority)[-1]
    for name in (KEY, NEXT):  # the second one is left by an interrupted change
        if (authority.folder / name).exists():
            key = identity.load_ec_key(private_files.read_private(authority.folder / name), authority.lock.password)
            if public_text(key.public_key()) == newest.public:
                return key
    raise EnrollError(
        "E306", f"{authority.folder} does not contain the operator key that {LINE} names: put it back, or {BY_ROOT}"
    )


def replace(authority: Authority, root: Pair | None = None) -> tuple[Succession, ...]:
    """Create a new operator key, signed by the present one or, if `root` is given because that was stolen or lost, by
    the root in a new term.

    Devices refuse runs that the old key signed from then on; `fedhet submit --resume` signs them again. Raises
    EnrollError E306, also if the chain has its greatest length; the root then begins a new one."""
    ensure(authority)
    key = ec.generate_private_key(ec.SECP384R1())
    with alone(authority.folder / LOCK, "makes the operator key", 30.0):
        before = line(authority.folder)
        if root is None and len(before) >= MAX_SUCCESSIONS:
            raise EnrollError(
                "E306", f"{LINE} has {MAX_SUCCESSIONS} keys, and devices accept no more: {BY_ROOT} begins a new chain"
            )
        term, by = (before[-1].term, "operator") if root is None else (before[-1].term + 1, "root")
        named = Succession(public_text(key.public_key()), term, by)
        signed = replaced(named, signature=sign(load(authority) if root is None else root[1], DOMAIN, named.signed()))
        _write_key(authority, key, NEXT)
        _write_chain(authority.folder, (*before, signed) if root is None else (before[0], signed))
        (authority.folder / NEXT).replace(authority.folder / KEY)
        return line(authority.folder)


def parse(text: str) -> tuple[Succession, ...]:
    """Parse a chain from JSON text. Raises EnrollError E311."""
    try:
        return read(json.loads(text))
    except (ValueError, RecursionError):
        raise EnrollError("E311", "its line of operator keys cannot be read") from None


def read(given: Any) -> tuple[Succession, ...]:
    """Parse a chain from its JSON form. Raises EnrollError E311."""
    rows = given.get("line") if isinstance(given, Mapping) else None
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_SUCCESSIONS:
        raise EnrollError("E311", "it contains no chain of operator keys")
    found = []
    for row in rows:
        kinds = {"public": str, "term": int, "by": str, "signature": str}
        if not isinstance(row, Mapping) or {k: type(v) for k, v in row.items()} != kinds:
            raise EnrollError("E311", "its line of operator keys cannot be read")
        public_key(row["public"])
        found.append(Succession(**row))
    return tuple(found)


def to_json(successions: Sequence[Succession]) -> dict[str, Any]:
    """The JSON form of a chain."""
    return {"line": [asdict(one) for one in successions]}


def follow(
    known: Succession | None, successions: Sequence[Succession], roots: Sequence[Certificate]
) -> Succession | None:
    """The newest key of a chain that follows from `known` or from one of these roots; None if no key does.

    Without a known key the last key of the chain is returned, unverified.
    """
    if known is None:
        return successions[-1]
    keys = [key for root in roots if isinstance(key := root.public_key(), ec.EllipticCurvePublicKey)]
    at, newest = known, None
    for one in successions:
        signed_by_root = one.by == "root" and one.term > at.term and any(one.signed_by(key) for key in keys)
        signed_by_operator = one.by == "operator" and one.term == at.term and one.signed_by(public_key(at.public))
        if one.public != at.public and (signed_by_root or signed_by_operator):
            at = newest = one
    return newest


def sign(key: ec.EllipticCurvePrivateKey, domain: str, *parts: bytes) -> str:
    """ECDSA signature, base64, over the digest of the parts in a domain."""
    return b64(key.sign(digest(domain, *parts), ec.ECDSA(hashes.SHA256())))


def verified(public: ec.EllipticCurvePublicKey, signature: str, domain: str, *parts: bytes) -> bool:
    """Whether `sign` made this signature with the key; False also for a malformed one."""
    try:
        public.verify(unb64(signature), digest(domain, *parts), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def public_text(public: ec.EllipticCurvePublicKey) -> str:
    """A public key as base64 of its DER form."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return b64(der)


def public_key(text: str) -> ec.EllipticCurvePublicKey:
    """The inverse of `public_text`. Raises EnrollError E311 for anything but an EC P-384 key."""
    try:
        key = serialization.load_der_public_key(unb64(text))
    except ValueError:
        raise EnrollError("E311", "an operator key cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EnrollError("E311", "an operator key is not EC P-384")
    return key


def _write_key(authority: Authority, key: ec.EllipticCurvePrivateKey, name: str) -> None:
    private_files.write_file(authority.folder / name, identity.pem(key, authority.lock.password))


def _write_chain(folder: Path, successions: Sequence[Succession]) -> None:
    private_files.write_file(folder / LINE, json.dumps(to_json(successions), indent=1) + "\n")
