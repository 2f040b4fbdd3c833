"""A client's signature over its update, which the server's gate verifies: a proxy that terminates TLS cannot alter it.

    Ed25519 over H(domain, run, node, task, base version, schema hash, SHA-256(payload), weight, metrics)

Each field is preceded by its length; integers are decimal text and floats their eight bytes, so that two updates that
differ anywhere have different messages.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedhet.federation.pki import identity
from fedhet.federation.pki.identity import Identity
from fedhet.types import Update

DOMAIN = "fedhet.update.v1"


@dataclass(frozen=True, slots=True)
class Statement:
    """The signed fields of an update. `schema` and `payload` are SHA-256 digests of 32 bytes each."""

    run: str
    node: str
    task: int
    version: int
    schema: bytes
    payload: bytes
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("schema", "payload"):
            if len(getattr(self, name)) != 32:
                raise ValueError(f"{name} must be a SHA-256 digest of 32 bytes, not {len(getattr(self, name))}")

    def parts(self) -> tuple[bytes, ...]:
        """The fields as byte strings, metrics sorted by name."""
        numbers = [str(self.task).encode(), str(self.version).encode()]
        metrics = [p for name in sorted(self.metrics) for p in (name.encode(), _float(self.metrics[name]))]
        head = [self.run.encode(), self.node.encode(), *numbers, self.schema, self.payload]
        return (*head, _float(self.weight), str(len(self.metrics)).encode(), *metrics)


def statement_of(
    run: str, node: str, job: int, version: int, payload: bytes | memoryview, weight: float,
    metrics: Mapping[str, float],
) -> Statement:  # fmt: skip
    """The statement about an update whose payload has the format of fedhet.numerics.wire_format; `schema` is the digest
    of the payload's header."""
    length = int.from_bytes(payload[:8], "little")
    schema = hashlib.sha256(payload[: 8 + length]).digest()
    return Statement(run, node, job, version, schema, payload_digest(payload), weight, metrics)


def payload_digest(payload: bytes | memoryview) -> bytes:
    """SHA-256 of a payload's bytes."""
    return hashlib.sha256(payload).digest()


def sign(own: identity.Identity, statement: Statement) -> bytes:
    """The device's signature, 64 bytes. Raises ValueError for a statement about another node."""
    if statement.node != own.node_id:
        raise ValueError(f"this device is {own.node_id}, the statement is about {statement.node}")
    return own.sign(DOMAIN, *statement.parts())


def verify(public: bytes, statement: Statement, signature: bytes) -> bool:
    """Whether the enrolled key `public` signed this statement and belongs to the node that it names."""
    if identity.node_id(public) != statement.node:
        return False
    return identity.verify(public, signature, DOMAIN, *statement.parts())


def _float(value: float) -> bytes:
    return struct.pack("<d", value)


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs a device's updates of one run."""

    own: Identity
    run: str

    def __call__(self, update: Update, payload: bytes | memoryview) -> Mapping[str, str]:
        job, node = update.job, self.own.node_id
        statement = statement_of(self.run, node, job.id, job.version, payload, update.weight, update.metrics)
        return {"node": node, "signature": sign(self.own, statement).hex()}
