"""Flower messages for a worker process: large arrays go through the arena, everything else through a pipe.

Pickle's out-of-band buffers (protocol 5) do the separating: whatever holds a large array, a message or a client's
state, is one short byte string and a list of places in the arena. A payload_record never leaves this process tree; what
comes from elsewhere is never unpickled.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Array

SMALL = 1 << 14
"""Bytes below which an array travels in the pipe with everything else."""

Place = tuple[int, int]
"""Where an array's data lie in the arena: offset and bytes."""


def pack(thing: Any, put: Callable[[Any], Place | None]) -> tuple[bytes, list[Place]]:
    """A thing as bytes, and where its large arrays were put. `put` is given each one's data and may decline."""
    places: list[Place] = []

    def aside(buffer: pickle.PickleBuffer) -> bool:
        place = put(buffer.raw().obj)
        if place is None:
            return True  # into the pipe after all
        places.append(place)
        return False

    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=5, buffer_callback=aside)
    pickler.dispatch_table = {Array: _reduce}
    pickler.dump(thing)
    return out.getvalue(), places


def unpack(data: bytes, buffers: Sequence[memoryview]) -> Any:
    """The thing again; its large arrays are the given views, or copies of what came in the pipe."""
    return pickle.loads(data, buffers=buffers)


def _reduce(array: Array) -> Any:
    if len(array.data) < SMALL:
        return _small, (array.dtype, array.shape, array.stype, bytes(array.data))
    return _large, (array.dtype, array.shape, array.stype, pickle.PickleBuffer(array.data))


def _small(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    return Array(dtype, shape, stype, data)


def _large(dtype: str, shape: tuple[int, ...], stype: str, data: Any) -> Array:
    array = Array(dtype, shape, stype, b"")
    array.data = data  # a view, where the constructor insists on bytes
    return array
