"""The gate: nothing a client sends reaches the server's state before it is checked. Never raises for bad input.

Checks in this order, each with a stable reason code: the job is outstanding and was given to this sender
(`unsolicited`, `sender`, `version`), who is not suspended (`suspended`) and has room in the buffer (`quota`); both run
the same `code`, an enrolled client may take part now and signed what it sent (`member`, `unsigned`, `signature`); the
weight is positive and within the client's cap (`weight`), a rank it goes on with is one of the job's (`rank`), the
payload is exactly what was asked for (`oversize`, `truncated`, `digest`, `format`, `names`, `shape`, `dtype`), metrics
are finite (`metrics`), every element is finite (`non_finite`), the norm is below the hard limit (`norm`), and nobody
else sent the same bytes (`clone`). What passes may still be bounded: its weight by the median client's, its length by
the median update's. Rejections are counted per client and code; one that keeps failing is suspended, for a time or
until `pardon`.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedhet.engine.answer import Answer
from fedhet.engine.stopping import BLAMELESS
from fedhet.numerics import tree, wire_format
from fedhet.numerics.tree import Schema
from fedhet.numerics.wire_format import MalformedUpdate
from fedhet.population.roster import Clients
from fedhet.types import KEPT_RANK, ClientId, Job, JobId, Update

MEMORY, WARM_UP = 200, 20
"""Accepted norms a median is taken of, and how many there must be before anything is cut to it."""

AUTO, MEDIANS = "auto", 10.0
"""A `weight_medians` that is what fits: this many where clients are enrolled."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an answer was not let in."""

    code: str
    detail: str


Vouch = Callable[[Answer], Rejected | None]
"""Whether an enrolled client vouches for an answer; if not, why."""


@dataclass
class Gate:
    """Weights: `max_weight` caps a client's declared samples (None: what its profile declares); whatever it may
    declare, it counts at most `weight_medians` times the median client's (None: no such bound; AUTO: none unless
    `enrolled` sets one). Where an operator approves what clients declare, the profile holds what was approved, and
    `claims` what a client says now: an answer within its claim counts as approved, one above it is refused. `bounded`
    holds, of each client whose weight was cut, what it asked for last and what it got.

    Deltas, as they cross the wire: norms above `max_norm` are refused; above `clip` medians of the last accepted ones
    they are cut to that length by `Update.scale` (None: never); `reject_duplicates` refuses bytes another client sent
    for the same combination. `per_buffer` is the most updates of one client that may wait to be combined (None: any
    number).

    Conduct: `suspend_after` rejections suspend a client (0: never), of which every `clear_violation_after` accepted
    updates forgive one, for `suspend_seconds` of the run's clock (None: until `pardon`). `vouch` is there where clients
    are enrolled. Raises ValueError for values out of range.
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
    verify_signature: Vouch | None = None
    strikes: dict[ClientId, float] = field(default_factory=dict)
    suspended: dict[ClientId, float] = field(default_factory=dict)
    """Until which second of the run; infinity without `suspend_seconds`."""
    rejections: dict[ClientId, Counter[str]] = field(default_factory=dict)
    claims: Callable[[ClientId], float] = lambda client: 0.0
    peers: Callable[[], Sequence[float]] | None = None
    bounded: dict[ClientId, tuple[float, float]] = field(default_factory=dict)
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))
    _digests: dict[str, Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.weight_medians, str) and self.weight_medians != AUTO:
            raise ValueError(
                f"gate.weight_medians={self.weight_medians} must be a number, {AUTO}, or null for no bound"
            )
        for name in ("max_weight", "weight_medians", "max_norm", "clip", "per_buffer", "suspend_seconds"):
            value = getattr(self, name)
            if value is not None and (name, value) != ("weight_medians", AUTO) and not value > 0:
                key = name if name == "max_weight" else f"gate.{name}"  # as people set them
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
        """The update in an answer, or why not. `sender` is who the carrier says sent it; `buffer` holds the jobs whose
        updates wait to be combined; `rank` is that of the job's adapters, 0 if it has none."""
        waiting = buffer or {}
        job = inflight.get(answer.job)
        if job is None:
            return Rejected("unsolicited", f"job {answer.job} is not outstanding")
        refusal = self._identity(answer, job, sender, waiting)
        if refusal is not None:
            return refusal
        cap = self.max_weight if self.max_weight is not None else max(1, roster.examples(sender))
        most = cap if self.max_weight is not None else max(cap, self.claims(sender))
        if not 0 < answer.weight <= most:
            return Rejected("weight", f"weight {answer.weight:g} is not in (0, {most:g}]")
        kept = float(answer.metrics.get(KEPT_RANK, 1))
        if KEPT_RANK in answer.metrics and not (kept.is_integer() and 1 <= kept <= rank):
            return Rejected("rank", f"the client goes on with rank {kept:g}, where the job's is {rank}")
        if self.sealed and not answer.sha256:
            return Rejected("digest", "the payload is not sealed")
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
        twin = self._twin(digest, sender, waiting)
        if twin is not None:
            return Rejected("clone", f"the same bytes as client {twin.client} sent for job {twin.id}")
        weight = min(answer.weight, cap, self._weight_bound(roster))
        if weight < answer.weight:
            self.bounded[sender] = (answer.weight, weight)
        update = Update(job, delta, weight, self._cut(norm), answer.metrics)
        self._note(job, norm * update.scale, digest)
        return update

    def enrolled(self, claims: Callable[[ClientId], float], peers: Callable[[], Sequence[float]]) -> None:
        """The clients are enrolled: what each declares now, and what all that may take part were approved with, of
        which a median is taken."""
        self.claims, self.peers = claims, peers
        if self.weight_medians == AUTO:
            self.weight_medians = MEDIANS

    def remember(self, updates: Iterable[Update]) -> None:
        """Updates that were accepted before: by an earlier life of the run, in their order."""
        for update in updates:
            norm = math.sqrt(tree.squared_norm(update.delta))
            digest = self._digest(wire_format.encode(update.delta), norm) if self.reject_duplicates else ""
            self._note(update.job, norm * update.scale, digest)

    def record_violation(self, client: ClientId, code: str = "", now: float = 0.0) -> bool:
        """Count a rejection at a second of the run; True if the client is suspended by it."""
        self.rejections.setdefault(client, Counter())[code] += 1
        if code in BLAMELESS:
            return False
        self.strikes[client] = self.strikes.get(client, 0.0) + 1.0
        if self.suspend_after and self.strikes[client] >= self.suspend_after and client not in self.suspended:
            self.suspended[client] = math.inf if self.suspend_seconds is None else now + self.suspend_seconds
            return True
        return False

    def clear_violations(self, client: ClientId) -> None:
        """The way back: forget what a client did."""
        self.strikes.pop(client, None)
        self.suspended.pop(client, None)

    @property
    def next_release(self) -> float | None:
        """The second of the run at which the next suspension ends, if any does."""
        first = min(self.suspended.values(), default=math.inf)
        return first if first < math.inf else None

    def release(self, now: float) -> list[ClientId]:
        """Pardon those whose time is over; who they are, ascending."""
        free = sorted(client for client, until in self.suspended.items() if until <= now + 1e-9)
        for client in free:
            self.clear_violations(client)
        return free

    def dump(self) -> dict[str, Any]:
        """What the gate learned, as JSON holds it; the digests of waiting updates follow from those."""
        return {
            "strikes": sorted(self.strikes.items()),
            "suspended": [[c, None if until == math.inf else until] for c, until in sorted(self.suspended.items())],
            "rejections": [[c, dict(counts)] for c, counts in sorted(self.rejections.items())],
            "norms": list(self.norms),
        }

    def load(self, data: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.strikes = {int(c): float(n) for c, n in data["strikes"]}
        self.suspended = {int(c): math.inf if until is None else float(until) for c, until in data["suspended"]}
        self.rejections = {int(c): Counter(counts) for c, counts in data["rejections"]}
        self.norms = deque(data["norms"], maxlen=MEMORY)

    def _identity(
        self, answer: Answer, job: Job, sender: ClientId, waiting: Mapping[JobId, Job]
    ) -> Rejected | None:  # fmt: skip
        """Who sent it, in answer to what, and whether it may."""
        if answer.client != sender or job.client != sender:
            return Rejected(
                "sender", f"client {sender} answered job {job.id} of client {job.client} as {answer.client}"
            )
        if answer.version != job.version:
            return Rejected("version", f"base version {answer.version}, the job's is {job.version}")
        if sender in self.suspended:
            return Rejected("suspended", f"client {sender} is suspended")
        if self.per_buffer is not None:
            count = sum(1 for other in waiting.values() if other.client == sender)
            if count >= self.per_buffer:
                return Rejected("quota", f"{count} updates of client {sender} wait to be combined already")
        if self.code and answer.code != self.code:
            return Rejected("code", "the client runs other code than the server where the method needs the same")
        return None if self.verify_signature is None else self.verify_signature(answer)

    def _weight_bound(self, roster: Clients) -> float:
        if self.weight_medians is None or isinstance(self.weight_medians, str):
            return math.inf
        counts = roster.column("num_examples") if self.peers is None else self.peers() or [1.0]
        return self.weight_medians * max(1.0, float(np.median(np.asarray(counts, dtype=np.float64))))

    def _cut(self, norm: float) -> float:
        """The scale that cuts a norm to the soft limit; 1 below it."""
        if self.clip is None or len(self.norms) < WARM_UP:
            return 1.0
        limit = self.clip * float(np.median(self.norms))
        return limit / norm if norm > limit > 0.0 else 1.0

    def _digest(self, payload: bytes | memoryview, norm: float) -> str:
        """Empty where copies are not looked for; two updates that are zero are no copies."""
        return wire_format.digest(payload) if self.reject_duplicates and norm > 0.0 else ""

    def _twin(self, digest: str, sender: ClientId, waiting: Mapping[JobId, Job]) -> Job | None:
        if not digest:
            return None
        self._digests = {d: job for d, job in self._digests.items() if job.id in waiting}
        twin = self._digests.get(digest)
        return twin if twin is not None and twin.client != sender else None

    def _note(self, job: Job, norm: float, digest: str) -> None:
        if self.clip is not None:
            self.norms.append(norm)
        if digest:
            self._digests[digest] = job
        if job.client in self.strikes:
            self.strikes[job.client] -= 1.0 / self.clear_violation_after
            if self.strikes[job.client] <= 1e-9:
                del self.strikes[job.client]
