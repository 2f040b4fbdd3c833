"""Canonical JSON, the bytes that are signed or hashed: sorted keys, no whitespace, no floats.

Floats have many spellings and NaN equals nothing, so quantities are integers in a fixed unit (microseconds, bytes).
Every use names a domain, so that a signature made for one purpose is invalid for another.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Mapping, Sequence
from typing import Any

MAX_DEPTH = 16
"""Nesting depth of a text from outside, at most."""
MAX_INTEGER_CHARACTERS = 19
"""Characters of an integer in a text from outside, at most."""


def canonical(value: Any) -> bytes:
    """Encode None, booleans, integers, strings, lists and string-keyed mappings. Raises TypeError for other types."""
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse(text: bytes) -> Any:
    """Parse JSON strictly: UTF-8, no duplicate keys, no floats, no lone surrogates, at most `MAX_DEPTH` levels.

    Raises ValueError.
    """
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_int=_integer, parse_float=_no_float,
            parse_constant=_no_float,
        )  # fmt: skip
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at {error.pos}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check_text(value, MAX_DEPTH)
    return value


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


def unb64(text: Any) -> bytes:
    """Bytes from base64 text. Raises ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError(f"not base64: {type(text).__name__}")
    try:
        return b64decode(text.encode("ascii"), validate=True)
    except (Error, UnicodeEncodeError) as error:
        raise ValueError(f"not base64: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key comes twice")
    return made


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_CHARACTERS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _no_float(text: str) -> float:
    raise ValueError(f"{text[:20]} is not an integer")


def _check_text(value: Any, depth: int) -> None:
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError, which is a ValueError, for half a surrogate pair
    elif isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
        for item in value.values() if isinstance(value, dict) else value:
            _check_text(item, depth - 1)
        for key in value if isinstance(value, dict) else ():
            key.encode()


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
