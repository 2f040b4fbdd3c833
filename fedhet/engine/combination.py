"""The server's first layer: how updates become the next version of the model. `_aggregate` is federated learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedhet.engine.aggregator import Demanding
from fedhet.engine.server_state import AbstractServerState
from fedhet.engine.stopping import MAX_CONSECUTIVE_FAILURES, Diverged, ScheduleError, TooManyFailures
from fedhet.numerics import tree
from fedhet.types import JobId, Tree, Update


@dataclass
class CombiningServer(AbstractServerState):
    """A server state that combines and drops buffered updates."""

    def step_of(self, updates: Sequence[Update]) -> Tree:
        """The step that a combination of these updates adds to the model; the model does not change, but memories of
        transforms may."""
        self.cohort = [update.job for update in updates]
        return self._step(list(updates))[1]

    def _drop(self, jobs: Sequence[JobId], reason: str) -> None:
        """Remove updates from the buffer without combining them."""
        jobs = self._not_revoked(jobs)
        for job in [self._unbuffer(j) for j in jobs]:
            self._release(job.version)
        self.aggregator.dropped(jobs)
        self.counts[f"dropped: {reason}"] += len(jobs)
        self._emit("dropped", jobs=list(jobs), reason=reason)

    def _step(self, updates: list[Update]) -> tuple[list[Update], Tree]:
        """The cohort's updates after all `arrive` hooks, and the step to add to the model. Raises Diverged if the step
        is not finite."""
        inward = self.method.transforms[::-1]
        for name, transform in inward:
            memory = self.memories.setdefault(name, {})
            updates = [transform.arrive(u, self, memory) for u in updates]
        updates = [
            replace(u, delta=self.space.decode_delta(self.bases[u.job.version], u.job, u.delta)) for u in updates
        ]
        delta = self.aggregator.combine(self.method.rule, updates, self.space, self)
        for name, transform in inward:
            step, unchanged = self.space.split_optimized(delta) if name.startswith("optimizer") else (delta, {})
            delta = tree.join(transform.finish(step, self, self.memories.setdefault(name, {})), unchanged)
        if not math.isfinite(tree.squared_norm(delta)):
            raise Diverged(
                f"version {self.version + 1}, combined from clients {[j.client for j in self.cohort]}, is not finite"
            )
        return updates, delta

    def _combine(self, ids: Sequence[JobId]) -> None:
        """Combine these updates and those carried over; or, if the rule needs more, carry all to the next combination.
        A carried update is dropped if its client has a newer one: no client counts twice because of the wait.

        Raises TooManyFailures if this repeats and the number of carried updates does not grow.
        """
        if not ids:
            raise ScheduleError(f"{type(self.method.schedule).__name__} combined nothing")
        if not isinstance(self.method.rule, Demanding):
            return self._aggregate(ids)
        newer = {self.buffer[i].client for i in ids}
        carried = [i for i in self.carried if i in self.buffer]
        if older := tuple(i for i in carried if self.buffer[i].client in newer):
            self._drop(older, "superseded")
        together = (*(i for i in carried if i not in older), *ids)
        lack = self.method.rule.lacks([self.buffer[i].client for i in together])
        if lack is None:
            self.carried, self.stuck = [], 0
            return self._aggregate(together)
        self.note("carried", {"jobs": len(together), "why": lack.why})
        if getattr(self.method.schedule, "apart", False):
            self.stuck += 1
            self._drop(together, "too few")
        else:
            self.stuck = 0 if len(together) > len(carried) else self.stuck + 1
            self.carried = list(together)
        if self.stuck >= max(MAX_CONSECUTIVE_FAILURES, 3 * len(self.roster)):
            raise TooManyFailures(f"nothing could be combined the last {self.stuck} times: rule.{lack.key}: {lack.why}")

    def _aggregate(self, ids: Sequence[JobId]) -> None:
        """One combination: `arrive` of each transform, the rule, `finish` of each transform, `merge` of the space."""
        updates = sorted((self.updates[i] for i in ids if i in self.updates), key=lambda u: (u.job.client, u.job.id))
        jobs = [self._unbuffer(i) for i in ids]
        self.cohort = [u.job for u in updates]
        updates, delta = self._step(updates)
        old = self.version
        self.state = self.space.merge(self.state, delta)
        self.version += 1
        self.bases[self.version] = self.state
        self.counts["combined"] += len(jobs)
        self._emit(
            "combined", version=self.version, jobs=[u.job.id for u in updates], clients=[u.job.client for u in updates],
            staleness=[old - u.job.version for u in updates], scales=[u.scale for u in updates],
        )  # fmt: skip
        self.cohort = ()
        for job in jobs:
            self._release(job.version)
        if not self._holders[old]:
            self._holders.pop(old, None)
            self.bases.pop(old, None)
