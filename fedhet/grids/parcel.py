"""Flower messages for a worker process: large arrays go through the arena, the rest through a pipe.

A parcel never leaves this machine or this process tree. Equal array objects (a model packed once for many clients) are
written to the arena once.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, RecordDict

from fedhet.grids.arena import Arena, Slot

SMALL = 1 << 14
"""Bytes below which an array travels in the pipe with everything else."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Where an array's data lies: record, key, arena offset, bytes."""

    record: str
    key: str
    at: int
    size: int


def big_arrays(content: RecordDict) -> list[tuple[str, str, Array]]:
    """(record, key, array) of every array too large for the pipe."""
    return [
        (name, key, array)
        for name, record in content.items()
        if isinstance(record, ArrayRecord)
        for key, array in record.items()
        if len(array.data) >= SMALL
    ]


def strip(content: RecordDict, refs: list[Ref]) -> RecordDict:
    """The content without the data of the referenced arrays. The original is left as it is."""
    if not refs:
        return content
    out = RecordDict()
    gone = {(r.record, r.key) for r in refs}
    for name, record in content.items():
        if any(r.record == name for r in refs):
            out[name] = ArrayRecord(
                {
                    key: Array(a.dtype, a.shape, a.stype, b"") if (name, key) in gone else a
                    for key, a in content.array_records[name].items()
                }
            )
        else:
            out[name] = record
    return out


def fill(content: RecordDict, refs: list[Ref], arena: Arena, *, copy: bool) -> None:
    """Put the data back: as bytes of one's own, or as views of the arena that live as long as the slot."""
    for ref in refs:
        view = arena.view(ref.at, ref.size)
        content.array_records[ref.record][ref.key].data = bytes(view) if copy else view  # type: ignore[assignment]


def pour(content: RecordDict, slot: Slot | None, arena: Arena) -> list[Ref]:
    """Worker side: write large arrays into the answer's slot as far as it reaches; the others stay in the pipe."""
    refs: list[Ref] = []
    if slot is None:
        return refs
    at, end = slot.at, slot.at + slot.size
    for name, key, array in big_arrays(content):
        size = len(array.data)
        if at + size > end:
            continue
        arena.view(at, size)[:] = array.data
        refs.append(Ref(name, key, at, size))
        at += -(-size // 64) * 64
    return refs
