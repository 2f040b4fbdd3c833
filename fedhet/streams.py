"""Counter-based random streams: every draw in a run has a name, and no draw depends on another.

A stream is keyed by (seed, purpose, and any integers such as client and turn). Adding a plug-in that draws numbers
therefore changes nobody else's, and any number of workers sees the same bits.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def stream(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A Philox generator for this name; equal names give equal streams."""
    # as two machine words: numpy turns a Python integer into the same key three times more slowly
    return np.random.Generator(np.random.Philox(key=np.frombuffer(_digest(seed, purpose, keys), dtype="<u8")))


def torch_stream(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """The same, as a CPU torch generator."""
    return torch.Generator().manual_seed(number(seed, purpose, *keys))


def number(seed: int, purpose: str, *keys: int) -> int:
    """A number in [0, 2^63) with this name, to seed generators that are not ours."""
    return int.from_bytes(_digest(seed, purpose, keys)[:8], "little") >> 1


def _digest(seed: int, purpose: str, keys: tuple[int, ...]) -> bytes:
    text = f"{seed}/{purpose}/" + "/".join(map(str, keys))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
