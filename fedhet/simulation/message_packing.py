"""Flower messages for a worker process: large arrays go through shared memory (the arena), the rest through a pipe.

Pickle's out-of-band buffers (protocol 5) separate them: a message or a client's state becomes one short byte string and
a list of places in the arena. Pickled data never leave this process and its forks; data from elsewhere are never
unpickled.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Array

MIN_SHARED_BYTES = 1 << 14
"""Arrays smaller than this go through the pipe."""

Place = tuple[int, int]
"""Where an array's data are in the arena: offset and size in bytes."""


def pack(thing: Any, put: Callable[[Any], Place | None]) -> tuple[bytes, list[Place]]:
    """An object as bytes, and the places of its large arrays. `put` stores an array's data, or returns None to leave
    them in the bytes."""
    places: list[Place] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        place = put(buffer.raw().obj)
        if place is None:
            return True
        places.append(place)
        return False

    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=5, buffer_callback=in_band)
    pickler.dispatch_table = {Array: _reduce}
    pickler.dump(thing)
    return out.getvalue(), places


def unpack(data: bytes, buffers: Sequence[memoryview]) -> Any:
    """The object; its large arrays are the given views, or copies of data in the bytes."""
    return pickle.loads(data, buffers=buffers)


def _reduce(array: Array) -> Any:
    if len(array.data) < MIN_SHARED_BYTES:
        return _small, (array.dtype, array.shape, array.stype, bytes(array.data))
    return _large, (array.dtype, array.shape, array.stype, pickle.PickleBuffer(array.data))


def _small(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    return Array(dtype, shape, stype, data)


def _large(dtype: str, shape: tuple[int, ...], stype: str, data: Any) -> Array:
    array = Array(dtype, shape, stype, b"")
    array.data = data  # a view; the constructor accepts bytes only
    return array
