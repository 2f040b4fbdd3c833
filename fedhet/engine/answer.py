"""An answer as it came from a client, before the gate has looked at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came, before anything in it is believed."""

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
