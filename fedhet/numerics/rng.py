"""Counter-based random streams: every draw in a run has a name, and no draw depends on another.

A stream is keyed by (seed, purpose, and any integers such as client and turn). Adding a plug-in that draws numbers
therefore changes nobody else's, and any number of workers sees the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence


def stream(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A Philox generator for this name; equal names give equal streams."""
    key = _Key(np.frombuffer(_digest(seed, purpose, keys), dtype="<u8"))
    return np.random.Generator(np.random.Philox(key))  # type: ignore[arg-type]  # numpy's stubs leave ISeedSequence out


def torch_stream(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """The same, as a CPU torch generator."""
    return torch.Generator().manual_seed(number(seed, purpose, *keys))


def number(seed: int, purpose: str, *keys: int) -> int:
    """A number in [0, 2^63) with this name, to seed generators that are not ours."""
    return int.from_bytes(_digest(seed, purpose, keys)[:8], "little") >> 1


@contextlib.contextmanager
def seeded(lots: int, *, libraries: bool = True) -> Iterator[None]:
    """The global streams that code of others draws from, seeded with a number such as one of `number`, and put back at
    the end: torch's, and unless `libraries` is False also those of numpy and Python's `random`."""
    # (torch.manual_seed and fork_rng walk all accelerators and cost more than a small job.)
    before = torch.default_generator.get_state()
    others = (np.random.get_state(), random.getstate()) if libraries else None
    # of a device nothing is asked that has not been used: asking would set it up, and a process with it cannot fork
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    torch.default_generator.manual_seed(lots)
    if devices:
        torch.cuda.manual_seed_all(lots)
    if others:
        np.random.seed(lots % (1 << 32))
        random.seed(lots)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        if others:
            np.random.set_state(others[0])
            random.setstate(others[1])


class _Key(ISeedSequence):
    """A Philox key, in the place of a seed: given as `key=` it would be the same generator, after numpy had asked the
    operating system for a seed that nobody uses, which takes three times as long."""

    __slots__ = ("_words",)

    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The key, as two words of 64 bits: all that Philox asks for."""
        if n_words != len(self._words) or dtype != np.uint64:
            raise ValueError(f"a Philox key is two uint64, not {n_words} x {np.dtype(dtype)}")
        return self._words


def _digest(seed: int, purpose: str, keys: tuple[int, ...]) -> bytes:
    text = f"{seed}/{purpose}/" + "/".join(map(str, keys))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
