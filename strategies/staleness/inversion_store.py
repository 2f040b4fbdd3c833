"""Stored reconstructions: each client's last reconstructed data, and the update they were computed from.

At most `keep` clients are stored; the entry of the oldest update is deleted first. Results computed before their
combination are stored here as well, at most as many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedhet.types import ClientId, JobId, Memory, Tree


@dataclass(frozen=True, slots=True)
class Entry:
    """Images (n, *input_shape), label logits (n, classes), and the displacement (parameters,) they reproduce."""

    x: Tensor
    z: Tensor
    late: Tensor


@dataclass(frozen=True)
class Store:
    """Stored reconstructions of at most `keep` clients. Raises ValueError for keep below 1."""

    keep: int = 32

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep={self.keep} must be at least 1 client")

    def read(self, client: ClientId, memory: Memory) -> Entry | None:
        if f"x/{client}" not in memory:
            return None
        return Entry(memory[f"x/{client}"], memory[f"z/{client}"], memory[f"late/{client}"])

    def write(self, client: ClientId, entry: Entry, memory: Memory) -> None:
        """Store the client's entry as the newest one."""
        order = [c for c in memory.get("order", torch.zeros(0, dtype=torch.int64)).tolist() if c != client]
        for old in order[: len(order) + 1 - self.keep]:
            for name in ("x", "z", "late"):
                del memory[f"{name}/{old}"]
        memory["order"] = torch.tensor([*order, client][-self.keep :], dtype=torch.int64)
        memory[f"x/{client}"], memory[f"z/{client}"], memory[f"late/{client}"] = entry.x, entry.z, entry.late

    def lay(self, job: JobId, found: Tree | None, memory: Memory) -> None:
        """Store the result for an update that will be combined later; None: the update is used unchanged."""
        order = memory.get("waiting", torch.zeros(0, dtype=torch.int64)).tolist()
        for old in order[: len(order) + 1 - self.keep]:
            self.fetch(old, memory)
        memory["waiting"] = torch.tensor([*order, job][-self.keep :], dtype=torch.int64)
        memory[f"found/{job}"] = torch.tensor(found is not None)
        for name, leaf in (found or {}).items():
            memory[f"found/{job}/{name}"] = leaf

    def fetch(self, job: JobId, memory: Memory) -> tuple[bool, Tree | None]:
        """Whether an update's result was computed before, and the result, which is removed."""
        if memory.pop(f"found/{job}", None) is None:
            return False, None
        memory["waiting"] = memory["waiting"][memory["waiting"] != job]
        start = f"found/{job}/"
        found = {name.removeprefix(start): memory.pop(name) for name in list(memory) if name.startswith(start)}
        return True, found or None
