"""A client's answer before the gate has checked it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was received: no field is trusted.

    `payload` is an encoded tree with digest `sha256`, `code` the hash of the client's code, `node` and `signature`
    (hex) those of an enrolled client, empty otherwise.
    """

    job: int
    client: int
    version: int
    weight: float
    metrics: Mapping[str, float]
    payload: bytes | memoryview
    sha256: str
    code: str
    node: str = ""
    signature: str = ""
