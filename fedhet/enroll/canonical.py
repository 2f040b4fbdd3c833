"""One way to turn plain data into the bytes that are signed or hashed: JSON with sorted keys and without floats.

Floats have many spellings and NaN has no order, so quantities are integers in a fixed unit (microseconds, bytes). Every
use names its domain, so that a signature made for one purpose never passes for another.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Mapping, Sequence
from typing import Any


def canonical(value: Any) -> bytes:
    """Bytes of None, booleans, integers, strings, lists and string-keyed mappings. Raises TypeError for others."""
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(domain: str, *parts: bytes) -> bytes:
    """SHA-256 over a domain and byte strings, each preceded by its length, so that no two lists collide."""
    state = hashlib.sha256()
    for part in (domain.encode(), *parts):
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def b64(data: bytes) -> str:
    """Base64 text."""
    return b64encode(data).decode("ascii")


def unb64(text: str) -> bytes:
    """Bytes from base64 text. Raises ValueError for anything else."""
    try:
        return b64decode(text.encode("ascii"), validate=True)
    except (Error, UnicodeEncodeError) as error:
        raise ValueError(f"not base64: {error}") from None


def _check(value: Any) -> None:
    if value is None or isinstance(value, (bool, int, str)):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a string")
            _check(item)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            _check(item)
    else:
        raise TypeError(f"{type(value).__name__} {value!r:.60} has no canonical form; use integers in a fixed unit")
