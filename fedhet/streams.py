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
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, keys)))


def torch_stream(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """The same, as a CPU torch generator."""
    low = _key(seed, purpose, keys) & 0x7FFF_FFFF_FFFF_FFFF
    return torch.Generator().manual_seed(low)


def _key(seed: int, purpose: str, keys: tuple[int, ...]) -> int:
    text = f"{seed}/{purpose}/" + "/".join(map(str, keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
