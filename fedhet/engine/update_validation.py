"""The gate: checks every answer of a client before it reaches the server's state. Never raises for bad input.

Checks in this order, each with a stable reason code: the job is outstanding and was given to this sender
(`unsolicited`, `sender`, `version`), who is not suspended (`suspended`) and has room in the buffer (`quota`); both run
the same `code`, an enrolled client may take part now and signed its answer (`member`, `unsigned`, `signature`); the
weight is positive and within the client's cap (`weight`), a rank it continues with is one of the job's (`rank`), the
payload has the expected schema (`oversize`, `truncated`, `digest`, `format`, `names`, `shape`, `dtype`), metrics are
finite (`metrics`), every element is finite (`non_finite`), the norm is below the hard limit (`norm`), and no other
client sent the same bytes (`clone`). The weight of an accepted update may still be bounded by the median client's, and
its norm by the median update's. Rejections are counted per client and code; a client with too many violations is
suspended, for a time or until `clear_violations`.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedhet.engine.answer import Answer
from fedhet.engine.identity_checks import Rejected, SignatureCheck, check_identity
from fedhet.engine.stopping import NEUTRAL_CODES
from fedhet.numerics import tree, wire_format
from fedhet.numerics.tree import Schema
from fedhet.numerics.wire_format import MalformedUpdate
from fedhet.population.roster import Clients
from fedhet.types import KEPT_RANK, ClientId, Job, JobId, Update

__all__ = ["Gate", "Rejected"]

MAX_NORMS, MIN_NORMS = 200, 20
"""Accepted norms that the median is taken of, and the least number of them before a norm is clipped to it."""

AUTO, AUTO_MEDIANS = "auto", 10.0
"""The default of `weight_medians`: this bound where clients are enrolled, none elsewhere."""


@dataclass
class Gate:
    """Weights: `max_weight` caps the samples that an answer reports (None: the number in the client's profile). Each
    weight counts at most `weight_medians` times the median client's (None: no such bound; AUTO: none unless `enrolled`
    sets one). Where an operator approves what clients declare, the profile has the approved number and `claims` the
    number that the client declares now: an answer up to its claim counts as approved, one above it is rejected.
    `bounded` maps each client whose weight was cut to its last (reported weight, counted weight).

    Deltas, as encoded for the wire: a norm above `max_norm` is rejected; one above `clip` times the median of the last
    accepted norms is clipped to it by `Update.scale` (None: never); `reject_duplicates` rejects bytes that another
    client sent for the same combination. `per_buffer` is the largest number of updates of one client that may wait to
    be combined (None: any number).

    Violations: `suspend_after` rejections suspend a client (0: never) for `suspend_seconds` of the run's clock (None:
    until `clear_violations`); every `clear_violation_after` accepted updates clear one. `verify_signature` is set where
    clients are enrolled. Raises ValueError for values out of range.
    """

    max_weight: float | None = None
    weight_medians: float | str | None = AUTO
    max_norm: float = 1e15
    clip: float | None = None
    reject_duplicates: bool = False
    per_buffer: int | None = None
    suspend_after: int = 5
    clear_violation_after: int = 20
    suspend_seconds: float | None = None
    sealed: bool = False
    code: str = ""
    verify_signature: SignatureCheck | None = None
    violations: dict[ClientId, float] = field(default_factory=dict)
    suspended: dict[ClientId, float] = field(default_factory=dict)
    """The second of the run at which a suspension ends; infinity without `suspend_seconds`."""
    rejections: dict[ClientId, Counter[str]] = field(default_factory=dict)
    claims: Callable[[ClientId], float] = lambda client: 0.0
    peers: Callable[[], Sequence[float]] | None = None
    bounded: dict[ClientId, tuple[float, float]] = field(default_factory=dict)
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_NORMS))
    _digests: dict[str, Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.weight_medians, str) and self.weight_medians != AUTO:
            raise ValueError(
                f"gate.weight_medians={self.weight_medians} must be a number, {AUTO}, or null for no bound"
            )
        for name in ("max_weight", "weight_medians", "max_norm", "clip", "per_buffer", "suspend_seconds"):
            value = getattr(self, name)
            if value is not None and (name, value) != ("weight_medians", AUTO) and not value > 0:
                key = name if name == "max_weight" else f"gate.{name}"  # as users set them
                raise ValueError(f"{key}={value} must be positive, or null for no such limit")
        if self.suspend_after < 0 or self.clear_violation_after < 1:
            raise ValueError(
                f"gate.suspend_after={self.suspend_after} must be 0 (never) or more rejections, "
                f"gate.clear_violation_after={self.clear_violation_after} at least 1 accepted update"
            )

    def check(
        self,
        answer: Answer,
        sender: ClientId,
        inflight: Mapping[JobId, Job],
        expects: Schema,
        roster: Clients,
        buffer: Mapping[JobId, Job] | None = None,
        rank: int = 0,
    ) -> Update | Rejected:
        """The update of an answer, or why it is rejected. `sender` is the client that the message came from; `buffer`
        are the jobs whose updates wait to be combined; `rank` is that of the job's adapters, 0 without adapters."""
        waiting = buffer or {}
        job = inflight.get(answer.job)
        if job is None:
            return Rejected("unsolicited", f"job {answer.job} is not outstanding")
        rejected = check_identity(
            answer, job, sender, waiting, suspended=self.suspended, per_buffer=self.per_buffer, code=self.code,
            verify_signature=self.verify_signature,
        )  # fmt: skip
        if rejected is not None:
            return rejected
        cap = self.max_weight if self.max_weight is not None else max(1, roster.examples(sender))
        most = cap if self.max_weight is not None else max(cap, self.claims(sender))
        if not 0 < answer.weight <= most:
            return Rejected("weight", f"weight {answer.weight:g} is not in (0, {most:g}]")
        next_rank = float(answer.metrics.get(KEPT_RANK, 1))
        if KEPT_RANK in answer.metrics and not (next_rank.is_integer() and 1 <= next_rank <= rank):
            return Rejected("rank", f"the client continues with rank {next_rank:g}, where the job's is {rank}")
        if self.sealed and not answer.sha256:
            return Rejected("digest", "the payload has no digest")
        try:
            delta = wire_format.decode(answer.payload, expects, answer.sha256)
        except MalformedUpdate as error:
            return Rejected(error.code, error.detail)
        norm = math.sqrt(tree.squared_norm(delta))
        if not math.isfinite(norm):
            return Rejected("non_finite", "the delta holds NaN or infinity, or its norm overflows")
        if norm > self.max_norm:
            return Rejected("norm", f"norm {norm:.3g} is above {self.max_norm:g}")
        digest = self._digest(answer.payload, norm)
        duplicate = self._duplicate(digest, sender, waiting)
        if duplicate is not None:
            return Rejected("clone", f"the same bytes as client {duplicate.client} sent for job {duplicate.id}")
        weight = min(answer.weight, cap, self._weight_bound(roster))
        if weight < answer.weight:
            self.bounded[sender] = (answer.weight, weight)
        update = Update(job, delta, weight, self._clip_scale(norm), answer.metrics)
        self._record_accepted(job, norm * update.scale, digest)
        return update

    def enrolled(self, claims: Callable[[ClientId], float], peers: Callable[[], Sequence[float]]) -> None:
        """Configure the gate for enrolled clients: `claims` gives the number of samples that a client declares now,
        `peers` the approved numbers of all clients that may take part, for the median."""
        self.claims, self.peers = claims, peers
        if self.weight_medians == AUTO:
            self.weight_medians = AUTO_MEDIANS

    def remember(self, updates: Iterable[Update]) -> None:
        """Record updates that were accepted before the run was resumed, in their order."""
        for update in updates:
            norm = math.sqrt(tree.squared_norm(update.delta))
            digest = self._digest(wire_format.encode(update.delta), norm) if self.reject_duplicates else ""
            self._record_accepted(update.job, norm * update.scale, digest)

    def record_violation(self, client: ClientId, code: str = "", now: float = 0.0) -> bool:
        """Count a rejection at second `now` of the run; True if it suspends the client."""
        self.rejections.setdefault(client, Counter())[code] += 1
        if code in NEUTRAL_CODES:
            return False
        self.violations[client] = self.violations.get(client, 0.0) + 1.0
        if self.suspend_after and self.violations[client] >= self.suspend_after and client not in self.suspended:
            self.suspended[client] = math.inf if self.suspend_seconds is None else now + self.suspend_seconds
            return True
        return False

    def clear_violations(self, client: ClientId) -> None:
        """Forget a client's violations and end its suspension."""
        self.violations.pop(client, None)
        self.suspended.pop(client, None)

    @property
    def next_release(self) -> float | None:
        """The second of the run at which the next suspension ends, if any does."""
        first = min(self.suspended.values(), default=math.inf)
        return first if first < math.inf else None

    def release(self, now: float) -> list[ClientId]:
        """End the suspensions whose time is over; returns these clients in ascending order."""
        free = sorted(client for client, until in self.suspended.items() if until <= now + 1e-9)
        for client in free:
            self.clear_violations(client)
        return free

    def dump(self) -> dict[str, Any]:
        """The gate's state as JSON data, without the digests of waiting updates, which `remember` computes again."""
        return {
            "strikes": sorted(self.violations.items()),
            "suspended": [[c, None if until == math.inf else until] for c, until in sorted(self.suspended.items())],
            "rejections": [[c, dict(counts)] for c, counts in sorted(self.rejections.items())],
            "norms": list(self.norms),
        }

    def load(self, data: Mapping[str, Any]) -> None:
        """Restore what `dump` returned."""
        self.violations = {int(c): float(n) for c, n in data["strikes"]}
        self.suspended = {int(c): math.inf if until is None else float(until) for c, until in data["suspended"]}
        self.rejections = {int(c): Counter(counts) for c, counts in data["rejections"]}
        self.norms = deque(data["norms"], maxlen=MAX_NORMS)

    def _weight_bound(self, roster: Clients) -> float:
        """The largest weight that counts: `weight_medians` times the median client's number of samples."""
        if self.weight_medians is None or isinstance(self.weight_medians, str):
            return math.inf
        counts = roster.column("num_examples") if self.peers is None else self.peers() or [1.0]
        return self.weight_medians * max(1.0, float(np.median(np.asarray(counts, dtype=np.float64))))

    def _clip_scale(self, norm: float) -> float:
        """The scale that clips a norm to the soft limit; 1 below it."""
        if self.clip is None or len(self.norms) < MIN_NORMS:
            return 1.0
        limit = self.clip * float(np.median(self.norms))
        return limit / norm if norm > limit > 0.0 else 1.0

    def _digest(self, payload: bytes | memoryview, norm: float) -> str:
        """The digest by which duplicates are found; empty if they are allowed, and for updates of zeros."""
        return wire_format.digest(payload) if self.reject_duplicates and norm > 0.0 else ""

    def _duplicate(self, digest: str, sender: ClientId, waiting: Mapping[JobId, Job]) -> Job | None:
        """The job of a waiting update of another client with the same digest."""
        if not digest:
            return None
        self._digests = {d: job for d, job in self._digests.items() if job.id in waiting}
        other = self._digests.get(digest)
        return other if other is not None and other.client != sender else None

    def _record_accepted(self, job: Job, norm: float, digest: str) -> None:
        if self.clip is not None:
            self.norms.append(norm)
        if digest:
            self._digests[digest] = job
        if job.client in self.violations:
            self.violations[job.client] -= 1.0 / self.clear_violation_after
            if self.violations[job.client] <= 1e-9:
                del self.violations[job.client]
