"""The gate: nothing a client sends reaches the server's state before it is checked. Never raises for bad input.

Checks in this order, each with a stable reason code: the job is outstanding and was given to this sender
(`unsolicited`, `sender`, `version`), both run the same `code`, the weight is positive and within the client's cap
(`weight`), the payload is exactly what was asked for (`oversize`, `truncated`, `digest`, `format`, `names`, `shape`,
`dtype`), metrics are finite (`metrics`), every element is finite (`non_finite`), and the norm is below the hard limit
(`norm`). Rejections are counted per client; one that keeps failing is suspended until `pardon`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedhet import tree, wire
from fedhet.message import Answer
from fedhet.roster import Clients
from fedhet.tree import Schema
from fedhet.types import ClientId, Job, JobId, Update
from fedhet.wire import MalformedUpdate


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an answer was not let in."""

    code: str
    detail: str


@dataclass
class Gate:
    """`max_weight` caps a client's declared samples (None: what its profile declares), `max_norm` the norm of a delta.
    `suspend_after` rejections of one client without an accepted update between them suspend it (0: never)."""

    max_weight: float | None = None
    max_norm: float = 1e15
    suspend_after: int = 5
    sealed: bool = False
    code: str = ""
    strikes: Counter[ClientId] = field(default_factory=Counter)
    suspended: set[ClientId] = field(default_factory=set)

    def check(
        self, answer: Answer, sender: ClientId, inflight: Mapping[JobId, Job], expects: Schema, roster: Clients
    ) -> Update | Rejected:
        """The update in an answer, or why not. `sender` is who the carrier says sent it."""
        job = inflight.get(answer.job)
        if job is None:
            return Rejected("unsolicited", f"job {answer.job} is not outstanding")
        if answer.client != sender or job.client != sender:
            return Rejected(
                "sender", f"client {sender} answered job {job.id} of client {job.client} as {answer.client}"
            )
        if answer.version != job.version:
            return Rejected("version", f"base version {answer.version}, the job's is {job.version}")
        if self.code and answer.code != self.code:
            return Rejected("code", "the client runs other code than the server")
        cap = self.max_weight if self.max_weight is not None else max(1, roster.examples(sender))
        if not 0 < answer.weight <= cap:
            return Rejected("weight", f"weight {answer.weight:g} is not in (0, {cap:g}]")
        if self.sealed and not answer.sha256:
            return Rejected("digest", "the payload is not sealed")
        try:
            delta = wire.decode(answer.payload, expects, answer.sha256)
        except MalformedUpdate as error:
            return Rejected(error.code, error.detail)
        norm = math.sqrt(tree.squared_norm(delta))
        if not math.isfinite(norm):
            return Rejected("non_finite", "the delta holds NaN or infinity, or its norm overflows")
        if norm > self.max_norm:
            return Rejected("norm", f"norm {norm:.3g} is above {self.max_norm:g}")
        self.strikes.pop(sender, None)
        return Update(job, delta, answer.weight, metrics=answer.metrics)

    def strike(self, client: ClientId) -> bool:
        """Count a rejection; True if the client is suspended by it."""
        self.strikes[client] += 1
        if self.suspend_after and self.strikes[client] >= self.suspend_after and client not in self.suspended:
            self.suspended.add(client)
            return True
        return False

    def pardon(self, client: ClientId) -> None:
        """The way back: forget a client's rejections."""
        self.strikes.pop(client, None)
        self.suspended.discard(client)
