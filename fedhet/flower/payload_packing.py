"""Payloads as Flower records, each encoded once however many clients receive it."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord

from fedhet.flower import messages as records
from fedhet.numerics import wire_format
from fedhet.types import Tree

PackedPayload = tuple[Tree | None, ArrayRecord, str]
"""A payload, its record, and its SHA-256 ("" if payloads have none)."""

Place = tuple[tuple[Any, ...], ...]
"""Name, address, dtype, shape and strides of each leaf of a tree."""


class PayloadPacker:
    """Packs payloads and reuses the last record. `seal` adds a SHA-256."""

    def __init__(self, seal: bool) -> None:
        self._seal = seal
        self._last: PackedPayload = (None, ArrayRecord(), "")

    def pack(self, payload: Tree, same_instant: dict[Place, PackedPayload]) -> PackedPayload:
        """A payload as one record. The same tree object is encoded once, and so are trees of one instant whose leaves
        are the same parts of the same tensors; `same_instant` stores these trees, so that no address is reused."""
        if self._last[0] is not payload:
            place = _place(payload)
            if place not in same_instant:
                data = wire_format.encode(payload)
                digest = wire_format.digest(data) if self._seal else ""
                same_instant[place] = payload, records.payload_record(data), digest
            self._last = (payload, *same_instant[place][1:])
        return self._last


def _place(payload: Tree) -> Place:
    """Where the elements of a tree are in memory: equal only for equal trees while both exist."""
    return tuple((n, x.data_ptr(), x.dtype, tuple(x.shape), x.stride()) for n, x in payload.items())
