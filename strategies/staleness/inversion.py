"""Gradient inversion of late updates: the server reconstructs data from one, and trains the current model on them.

    1  X, Z  <-  argmin | LOCAL(w_base; X, softmax(Z)) - w_base - late |_1      (top-K coordinates or all)
    2  estimate = LOCAL(w_now; X, softmax(Z)) - w_now, combined in place of the late update, with its weight
    3  only for updates that differ from all fresh ones; it stops once the late updates err less than the estimates

Wang, Gao, "Tackling Intertwined Data and Device Heterogeneities in Federated Learning with Unlimited Staleness",
arXiv:2309.13536. LOCAL is the clients' own procedure, read from the configuration of their work; if it cannot be
unrolled, late updates are discounted by (1 + versions)^-a, and a note in the event log has the reason. Clients train as
in FedAvg.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedhet.bases import AbstractTransform
from fedhet.numerics.rng import stream
from fedhet.protocols import View
from fedhet.types import Job, Memory, Tree, Update
from strategies.staleness.inversion_local import Procedure
from strategies.staleness.inversion_search import Search
from strategies.staleness.inversion_solve import Solver, flat, shaped
from strategies.staleness.inversion_store import Entry, Store
from strategies.staleness.inversion_switch import Switch
from strategies.staleness.inversion_unique import Unique


@dataclass(frozen=True)
class Inversion(AbstractTransform):
    """Gradient inversion: the server reconstructs data from a late update and trains the current model on them.

    model: factory of the clients' model. procedure: the clients' local training. images: size of the reconstructed set.
    share: share of the coordinates that are matched. loss: "l1" or "l2". iterations, warm_iterations: without and with
    an earlier result of the client. seconds_per_iteration: time of one iteration on the run's clock; seconds: time
    limit per update, None for no limit. accept: largest relative loss of a reconstruction that is used. stale:
    staleness in versions from which an update is late. discount, discount_after: exponents for late updates that are
    not inverted, and for all of them after the switch. seed: of the initial data. The server sees individual updates.
    Raises ValueError for values out of range.
    """

    model: Callable[..., nn.Module]
    procedure: Procedure
    input_shape: Sequence[int] = (1, 8, 8)
    classes: int = 10
    images: int = 40
    share: float = 1.0
    loss: str = "l1"
    iterations: int = 200
    warm_iterations: int = 60
    seconds_per_iteration: float = 0.0
    seconds: float | None = None
    accept: float = 0.95
    stale: int = 1
    discount: float = 0.5
    discount_after: float = 0.0
    seed: int = 0
    search: Search = field(default_factory=Search)
    unique: Unique = field(default_factory=Unique)
    switch: Switch = field(default_factory=Switch)
    store: Store = field(default_factory=Store)

    needs: ClassVar[frozenset[str]] = frozenset({"each", "coordinates"})
    notice: ClassVar[str] = (
        "the server reconstructs data that resemble the training data of late clients from their single updates; "
        "they must have agreed to that, and sums that hide single updates are impossible"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(int(n) for n in self.input_shape))
        for name in ("classes", "images", "iterations", "warm_iterations", "stale"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share={self.share} is not in (0, 1]; 1 matches all coordinates")
        if self.loss not in ("l1", "l2"):
            raise ValueError(f"loss={self.loss!r} is unknown; use 'l1' or 'l2'")
        for name in ("seconds_per_iteration", "accept", "discount", "discount_after"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")
        if self.seconds is not None and not self.seconds >= self.seconds_per_iteration:
            raise ValueError(f"seconds={self.seconds} is less than one iteration takes; null is no limit")

    def prepare(self, update: Update, view: View, memory: Memory) -> tuple[Tree, float] | None:
        """The search for a late update as a server task, and its seconds, if inversions take time."""
        late = view.version - update.job.version
        if self.seconds_per_iteration == 0.0 or late < self.stale or self._solver.obstacle(view.state):
            return None
        task = self.task(update, view, memory)
        if task is None:
            self.store.lay(update.job.id, None, memory)
            return None
        return task, float(task["numbers"][3]) * self.seconds_per_iteration

    def run(self, task: Tree) -> Tree:
        """Run the search; it depends on the task alone, so it can run in another process."""
        return self._solver.solve(task)

    def complete(self, update: Update, result: Tree, memory: Memory) -> None:
        self.store.lay(update.job.id, result, memory)

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        late = view.version - update.job.version
        if late < self.stale:
            self.unique.remember(flat(update.delta), memory)
            return update
        why = self._solver.obstacle(view.state)
        if why:
            if "without" not in memory:
                memory["without"] = torch.tensor(1)
                view.note("no inversion", {"why": why})
            return self._plain(update, late, memory)
        self._compare(update, view, memory)
        ahead, found = self.store.fetch(update.job.id, memory)
        if not ahead:
            task = self.task(update, view, memory)
            found = None if task is None else self.run(task)
        return self._plain(update, late, memory) if found is None else self.settle(update, found, view, memory)

    def task(self, update: Update, view: View, memory: Memory) -> Tree | None:
        """The inversion task of a late update, or None if it is used unchanged. It has no side effects."""
        client, delta = update.job.client, flat(update.delta)
        entry = self.store.read(client, memory)
        if self.switch.share(view.version, memory) == 0.0 or not bool(delta.any()) or not self.unique(delta, memory):
            return None
        x, z = (entry.x, entry.z) if entry is not None else self._first(update.job, delta)
        count = self.iterations if entry is None else self.warm_iterations
        if self.seconds is not None and self.seconds_per_iteration > 0.0:
            count = min(count, math.floor(self.seconds / self.seconds_per_iteration + 1e-9))
        numbers = [update.job.budget.steps, update.job.version, update.weight, count]
        start = flat(view.base(update.job.version))
        return {"start": start, "target": delta, "x": x, "z": z, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    def settle(self, update: Update, found: Tree, view: View, memory: Memory) -> Update:
        """The late update after its task: the estimate, a weighted mean of both, or the update itself."""
        job, late, loss = update.job, view.version - update.job.version, float(found["loss"])
        share = self.switch.share(view.version, memory)
        used = loss <= self.accept and share > 0.0
        details = {"client": job.client, "job": job.id, "late": late, "miss": loss, "share": share if used else 0.0}
        view.note("inversion", {**details, "iterations": int(found["tried"])})
        if not math.isfinite(loss):
            return self._plain(update, late, memory)
        self.store.write(job.client, Entry(found["x"], found["z"], flat(update.delta).clone()), memory)
        if not used:
            return self._plain(update, late, memory)
        path = self._solver.path(job.budget.steps, view.version, update.weight, len(found["x"]))
        estimate = self._solver.estimate(flat(view.state), found["x"], found["z"], path)
        if share < 1.0:
            estimate = share * estimate + (1.0 - share) * flat(update.delta)
        return replace(update, delta=shaped(estimate, update.delta))

    def _compare(self, update: Update, view: View, memory: Memory) -> None:
        """Compare the estimate from the client's last reconstruction, and its last update, with its present update."""
        job, entry = update.job, self.store.read(update.job.client, memory)
        if entry is None or "switched" in memory:
            return
        start = flat(view.base(job.version))
        path = self._solver.path(job.budget.steps, job.version, update.weight, len(entry.x))
        estimate = self._solver.estimate(start, entry.x, entry.z, path)
        e1, e2 = self.switch.judge(estimate, entry.late, flat(update.delta), view.version, memory)
        view.note("inversion judged", {"client": job.client, "job": job.id, "estimate_error": e1, "late_error": e2})
        if "switched" in memory:
            view.note("inversion ends", {"version": view.version})

    def _plain(self, update: Update, late: int, memory: Memory) -> Update:
        exponent = self.discount_after if "switched" in memory else self.discount
        return update if exponent == 0.0 else replace(update, scale=update.scale * (1.0 + late) ** -exponent)

    def _first(self, job: Job, like: Tensor) -> tuple[Tensor, Tensor]:
        rng = stream(self.seed, "inversion", job.client, job.turn)
        x = rng.standard_normal((self.images, *self.input_shape))
        z = rng.standard_normal((self.images, self.classes))
        return torch.from_numpy(x).to(like.dtype), torch.from_numpy(z).to(like.dtype)

    @cached_property
    def _solver(self) -> Solver:
        shape = tuple(self.input_shape)
        parts = self.model, shape, self.classes, self.procedure, self.search
        return Solver(*parts, self.share, self.loss)
