"""The nouns: frozen records that travel between client, server, schedule and wire.

Units are in the names or the docstrings: seconds, bytes, samples, optimiser steps. Every time is on the run's
clock, which starts at 0 and is virtual or real; nothing here knows which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from torch import Tensor

ClientId: TypeAlias = int
"""A client's stable number in the roster: its partition when simulated, its enrolment number when real."""

Version: TypeAlias = int
"""Number of combinations applied to the model so far; staleness is a difference of versions."""

JobId: TypeAlias = int

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs (n, ...), and targets (n, ...): classes (n,), say, or each class's share in a sample (n, classes)."""

Tree: TypeAlias = Mapping[str, Tensor]
"""Named tensors: a model, a delta or a payload."""

Memory: TypeAlias = dict[str, Tensor]
"""What one plug-in keeps between calls; the host stores it (server file, or the client's context)."""
KEPT_RANK = "kept_rank"
"""The metric with which a client says that it goes on with a lower rank; the server asks it for no more again."""


class IndexedBatches(NamedTuple):
    """Batches whose samples stay in the data set: the t-th are the next sizes[t] that `order`, int64, names."""

    x: Tensor
    """Inputs (samples, ...)."""
    y: Tensor
    """Classes (samples,), int64."""
    order: Tensor
    """Places of samples, (sum of sizes,)."""
    sizes: list[int]


@dataclass(frozen=True, slots=True)
class Budget:
    """How much work one job asks for: optimiser steps, LoRA rank (0: not used), width as a share of the model."""

    steps: int = 1
    rank: int = 0
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work given to one client.

    `turn` counts the client's jobs from 0, so that a client's k-th job sees the same mini-batches under every
    schedule. `version` is the model it starts from, `sent` the second it was dispatched. `held` is the version the
    client is known to hold, from the last job it answered well; -1 if the server does not know.
    """

    id: JobId
    client: ClientId
    version: Version
    turn: int
    budget: Budget
    sent: float
    task: str = "train"
    held: Version = -1


@dataclass(frozen=True, slots=True)
class Update:
    """A client's answer: `delta = after - before`, always.

    `weight` is the client's share (its number of samples) and is normalised by the rule. `scale` multiplies the
    delta and is never normalised away: staleness discounts and norm clipping live there.
    """

    job: Job
    delta: Tree
    weight: float
    scale: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)


# Events: what happened. The server reacts to these and to nothing else.


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins; everybody in the roster has joined."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A client came in after the start (or came back)."""

    client: ClientId


@dataclass(frozen=True, slots=True)
class Left:
    """A client is gone; its jobs fail by separate `Failed` events."""

    client: ClientId


@dataclass(frozen=True, slots=True)
class Arrived:
    """An update passed the gate and lies in `view.buffer`. `seconds` is dispatch to arrival."""

    job: Job
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A job will bring nothing: client error, dropout, timeout, or the gate's rejection (`reason` names it)."""

    job: Job
    reason: str


@dataclass(frozen=True, slots=True)
class Woke:
    """A time asked for by `Wake` has come. Simultaneous arrivals were handled first."""

    at: float


@dataclass(frozen=True, slots=True)
class Ending:
    """The run reached its limit; a schedule that flushes does it now. Nothing is assigned any more."""


Event: TypeAlias = Started | Joined | Left | Arrived | Failed | Woke | Ending


# Commands: what a schedule wants.


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a job to an idle client.

    Carried out when all events of the instant are handled, with the model of that moment, so that equal clients
    get equal models. `steps` overrides the budget policy's steps; None leaves the policy's word.
    """

    client: ClientId
    steps: int | None = None
    task: str = "train"


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Combine these buffered jobs into the next version."""

    jobs: tuple[JobId, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Throw these buffered jobs away; each is counted under `reason`."""

    jobs: tuple[JobId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Ask for a `Woke` at this second of the run. Timers cannot be cancelled: ignore the ones that came too late."""

    at: float


@dataclass(frozen=True, slots=True)
class Note:
    """A row for the record: why the schedule did what it did. Changes nothing."""

    kind: str
    data: Mapping[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Stop:
    """End the run."""

    reason: str = ""


Command: TypeAlias = Assign | Aggregate | Drop | Wake | Note | Stop
