"""The key with which an operator signs what devices build, and how devices follow from one such key to the next.

The SuperLink and the programs that it starts do not hold it. Its public half is in `operator.json` beside it, as a
line of successions: the first key is believed as an enrolled device first hears of it from its authenticated server,
every later one because a key that the device knows has signed it, or the federation's root.

    ca/operator.key   EC P-384                ca/operator.json   {"line": [succession, ...]}, the first key first

A key that was stolen could name its own successors, so the root begins a new term: a later term is believed whatever
the keys of an earlier one have signed.
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
"""The command by which the root names a new key."""
MOST = 64
"""Successions in a line that a device reads."""


@dataclass(frozen=True, slots=True)
class Succession:
    """A key (base64 of DER), its term, and who named it: "root", "operator" (the key before it in the line) or "first",
    which nobody did. `signature` is base64."""

    public: str
    term: int = 0
    by: str = "first"
    signature: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key's DER form, in hexadecimal."""
        return hashlib.sha256(unb64(self.public)).hexdigest()

    def signed(self) -> bytes:
        """What whoever names a key signs."""
        return canonical({"public": self.public, "term": self.term, "by": self.by})

    def holds(self, public: ec.EllipticCurvePublicKey) -> bool:
        """Whether this key has signed it."""
        return verified(public, self.signature, DOMAIN, self.signed())


def ensure(authority: Authority) -> tuple[Succession, ...]:
    """The line of an authority's operator keys; of one that has none, after a first key is made.

    Raises EnrollError E306 if the line is there and its key is not.
    """
    folder = authority.folder
    if not (folder / LINE).exists():
        with alone(folder / LOCK, "makes the operator key", 30.0):
            if not (folder / LINE).exists():  # a key without it is an interrupted call's, and nobody has heard of it
                key = ec.generate_private_key(ec.SECP384R1())
                _keep(authority, key, KEY)
                _write(folder, (Succession(public_text(key.public_key())),))
    return line(folder)


def line(folder: Path) -> tuple[Succession, ...]:
    """The line in an authority's folder; empty if it has no operator key yet. Raises EnrollError E311."""
    path = folder / LINE
    return parse(path.read_text()) if path.exists() else ()


def load(authority: Authority) -> ec.EllipticCurvePrivateKey:
    """The key that signs now. Raises EnrollError E306 if it is not there."""
    newest = ensure(authority)[-1]
    for name in (KEY, NEXT):  # the second if a change was interrupted
        if (authority.folder / name).exists():
            key = identity.load_ec_key(private_files.read_private(authority.folder / name), authority.lock.password)
            if public_text(key.public_key()) == newest.public:
                return key
    raise EnrollError(
        "E306", f"{authority.folder} does not hold the operator key that {LINE} names: bring it back, or {BY_ROOT}"
    )


def replace(authority: Authority, root: Pair | None = None) -> tuple[Succession, ...]:
    """A new operator key, named by the one before it; or, if that was stolen or lost, by the root, in a new term.

    Runs that the old key signed are refused from then on: `fedhet submit --resume` signs them again. Raises EnrollError
    E306, also if the line is as long as devices read one: the root begins a short one.
    """
    ensure(authority)
    key = ec.generate_private_key(ec.SECP384R1())
    with alone(authority.folder / LOCK, "makes the operator key", 30.0):
        before = line(authority.folder)
        if root is None and len(before) >= MOST:
            raise EnrollError("E306", f"{LINE} has {MOST} keys, and devices read no more: {BY_ROOT} begins a new line")
        term, by = (before[-1].term, "operator") if root is None else (before[-1].term + 1, "root")
        named = Succession(public_text(key.public_key()), term, by)
        signed = replaced(named, signature=sign(load(authority) if root is None else root[1], DOMAIN, named.signed()))
        _keep(authority, key, NEXT)
        _write(authority.folder, (*before, signed) if root is None else (before[0], signed))
        (authority.folder / NEXT).replace(authority.folder / KEY)
        return line(authority.folder)


def parse(text: str) -> tuple[Succession, ...]:
    """A line from its JSON. Raises EnrollError E311."""
    try:
        return read(json.loads(text))
    except (ValueError, RecursionError):
        raise EnrollError("E311", "its line of operator keys cannot be read") from None


def read(told: Any) -> tuple[Succession, ...]:
    """A line as it is written and sent. Raises EnrollError E311."""
    rows = told.get("line") if isinstance(told, Mapping) else None
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST:
        raise EnrollError("E311", "it tells no line of operator keys")
    found = []
    for row in rows:
        kinds = {"public": str, "term": int, "by": str, "signature": str}
        if not isinstance(row, Mapping) or {k: type(v) for k, v in row.items()} != kinds:
            raise EnrollError("E311", "its line of operator keys cannot be read")
        public_key(row["public"])
        found.append(Succession(**row))
    return tuple(found)


def tell(successions: Sequence[Succession]) -> dict[str, Any]:
    """A line as JSON."""
    return {"line": [asdict(one) for one in successions]}


def follow(
    known: Succession | None, successions: Sequence[Succession], roots: Sequence[Certificate]
) -> Succession | None:
    """The newest key of a line that somebody who believes in `known` and in these roots believes; None if that is none
    other. Without a known key the last of the line is believed as it is."""
    if known is None:
        return successions[-1]
    keys = [key for root in roots if isinstance(key := root.public_key(), ec.EllipticCurvePublicKey)]
    at, newest = known, None
    for one in successions:
        by_root = one.by == "root" and one.term > at.term and any(one.holds(key) for key in keys)
        by_key = one.by == "operator" and one.term == at.term and one.holds(public_key(at.public))
        if one.public != at.public and (by_root or by_key):
            at = newest = one
    return newest


def sign(key: ec.EllipticCurvePrivateKey, domain: str, *parts: bytes) -> str:
    """Base64 of ECDSA over the digest of the parts in a domain."""
    return b64(key.sign(digest(domain, *parts), ec.ECDSA(hashes.SHA256())))


def verified(public: ec.EllipticCurvePublicKey, signature: str, domain: str, *parts: bytes) -> bool:
    """Whether `sign` made this with the key; False for a malformed signature too."""
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
    """Its inverse. Raises EnrollError E311 for anything but an EC P-384 key."""
    try:
        key = serialization.load_der_public_key(unb64(text))
    except ValueError:
        raise EnrollError("E311", "an operator key cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EnrollError("E311", "an operator key is not EC P-384")
    return key


def _keep(authority: Authority, key: ec.EllipticCurvePrivateKey, name: str) -> None:
    private_files.write_file(authority.folder / name, identity.pem(key, authority.lock.password))


def _write(folder: Path, successions: Sequence[Succession]) -> None:
    private_files.write_file(folder / LINE, json.dumps(tell(successions), indent=1) + "\n")
