"""Robust rules in several processes: each owns columns of all updates, where a leaf of a tree owns whole updates.

Rules that compare updates cannot be summed piece by piece, but all that a rule on rows ever asks for splits by columns:
the Gram matrix is a sum over chunks of columns, sum_h X_h X_h'; a weighted sum and a function of single coordinates
(median, trimmed mean) are formed column by column. So the rule itself runs with the server, as always, and decides from
the Gram matrix; processes do what costs: D n^2 multiplications and passes over n D numbers, in shared memory.

Shares are `WIDTH` columns wide, whatever the number of processes, and partial Gram matrices are added in the order of
their chunks. So one process or four give the same bits, and these are the bits of flat aggregation where its BLAS uses
one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedhet.bases.rule import AbstractRule, Blocks, UpdateMatrix
from fedhet.hierarchy.processes import Part, Task, Team
from fedhet.numerics import gram as inner
from fedhet.numerics import plain_data
from fedhet.numerics.tree import FlatTree, Schema, scaled
from fedhet.protocols import Rule, Space, View
from fedhet.types import JobId, Tree, Update

WIDTH = 4 * inner.CHUNK
"""Columns of one share: a few milliseconds of work, and a whole number of chunks and blocks."""


def vector(update: Update) -> Tensor:
    """The delta as one vector. Raises ValueError unless it is one of float32."""
    if not isinstance(update.delta, FlatTree) or update.delta.flat.dtype != torch.float32:
        raise ValueError("aggregation=hierarchical needs models whose tensors are all float32")
    return update.delta.flat


@dataclass
class Slices:
    """The geometry of plain vectors, carried out in shares of columns. `held` are vectors by where they lie."""

    team: Team
    held: dict[int, Part] = field(default_factory=dict)

    def hold(self, values: Tensor) -> Part:
        """Where a vector lies in shared memory, into which it is copied if it is not there."""
        if (there := self.held.get(values.data_ptr())) is not None:
            return there
        part = self.team.hold(values)
        self.held[part.values.data_ptr()] = part
        return part

    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        """All inner products in float64."""
        rows, n = self._rows(deltas), len(deltas)
        tasks = []
        for at, size in self._shares(rows):
            out = self.team.room(2 * n * n * -(-size // inner.CHUNK))
            tasks.append(self._give("gram", rows, at, size, out, out.at))
        self.team.wait(tasks)
        total = np.zeros((n, n))
        for task in tasks:
            for part in task.out.values.numpy().view(np.float64).reshape(-1, n, n):
                total += part
        return total

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        """sum_i coefficients[i] * scales[i] * deltas[i], accumulated in the order given; all cover everything."""
        return self._formed(deltas, "sum", c=scaled(coefficients, scales))

    def spread(self, deltas: Sequence[Tree], blocks: Blocks) -> Tree:
        """A function of each coordinate. Raises TypeError for a function that is not plain data, ValueError where the
        function does."""
        function, told = blocks.function, {"weights": blocks.weights.tolist(), "scales": blocks.scales.tolist()}
        matrix = None
        if blocks.matrix is not None:
            matrix = self.team.room(2 * blocks.matrix.size)
            matrix.values.numpy().view(np.float64)[:] = blocks.matrix.reshape(-1)
        named = {"module": type(function).__module__, "function": plain_data.dump(function)}
        return self._formed(deltas, "reduce", matrix=None if matrix is None else matrix.at, **told, **named)

    def _formed(self, deltas: Sequence[Tree], do: str, **more: object) -> Tree:
        rows = self._rows(deltas)
        out = self.team.room(len(rows[0].values))
        tasks = [self._give(do, rows, at, size, out, out.at + 4 * at, **more) for at, size in self._shares(rows)]
        self.team.wait(tasks)
        return FlatTree(Schema.of(deltas[0]), out.values)

    def _rows(self, deltas: Sequence[Tree]) -> list[Part]:
        return [self.hold(delta.flat) for delta in deltas if isinstance(delta, FlatTree)]

    def _shares(self, rows: Sequence[Part]) -> Iterator[tuple[int, int]]:
        size = len(rows[0].values)
        return ((at, min(WIDTH, size - at)) for at in range(0, size, WIDTH))

    def _give(self, do: str, rows: list[Part], at: int, size: int, out: Part, to: int, **more: object) -> Task:
        asked = {"do": do, "rows": [row.at + 4 * at for row in rows], "size": size, "out": to, **more}
        return self.team.give(Task(asked, rows, out), self.team.most)


class Columns:
    """Holds arrived updates in shared memory and has a rule's work on them done there. Not for more than one run."""

    def __init__(self, team: Team, *, eager: bool) -> None:
        """eager: processes start when an update arrives, not at the combination."""
        self.team, self._eager = team, eager
        self._slices = Slices(self.team)
        self._held: dict[JobId, Part] = {}

    def arrived(self, update: Update) -> Update:
        """Take an update in. Returns it with its delta where it lies now. Raises ValueError unless that is float32."""
        part = self._held[update.job.id] = self._slices.hold(vector(update))
        if self._eager:
            self.team.resize(self.team.most)
        return replace(update, delta=FlatTree(Schema.of(update.delta), part.values))

    def dropped(self, jobs: Sequence[JobId]) -> None:
        """Forget updates that will not be combined."""
        for job in jobs:
            del self._held[job]
        self._slices.held = {part.values.data_ptr(): part for part in self._held.values()}

    def combine(self, rule: Rule, updates: Sequence[Update], space: Space, view: View) -> Tree:
        """The rule's answer. What layers made of an update is copied into shared memory, too."""
        assert isinstance(rule, AbstractRule)
        for update in updates:
            vector(update)
        try:
            return rule.on(UpdateMatrix.of(updates, self._slices), view)
        finally:
            self.dropped([update.job.id for update in updates])

    def close(self) -> None:
        """End the processes."""
        self.team.close()
