"""What a plug-in may read of the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from fedhet.protocols.fleet import Idle, Observation, Roster
from fedhet.protocols.space import Space
from fedhet.types import ClientId, Job, JobId, Tree, Version

if TYPE_CHECKING:
    import numpy as np


class View(Protocol):
    """The server, read-only. It is live: it changes as commands are executed."""

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        ...

    @property
    def version(self) -> Version: ...
    @property
    def state(self) -> Tree:
        """The model of the current version."""
        ...

    @property
    def space(self) -> Space: ...
    @property
    def roster(self) -> Roster: ...
    @property
    def idle(self) -> Idle: ...
    @property
    def busy(self) -> int:
        """Number of clients with a job assigned or in flight."""
        ...

    @property
    def inflight(self) -> Mapping[JobId, Job]:
        """Jobs dispatched and not answered yet, in order of dispatch."""
        ...

    @property
    def buffer(self) -> Mapping[JobId, Job]:
        """Jobs whose updates are accepted and not combined yet, in order of arrival."""
        ...

    @property
    def cohort(self) -> Sequence[Job]:
        """The jobs in the current combination, sorted by (client, job); empty outside a combination."""
        ...

    def base(self, version: Version) -> Tree:
        """The model of `version`. Stored exactly while an unfinished or buffered job started from it."""
        ...

    def observed(self, client: ClientId) -> Observation: ...

    def fednova_norm(self, job: Job) -> float:
        """The sum of the weights of a job's gradients in its displacement, from its budget and the method's work
        (FedNova, arXiv:2007.07481). For rules that need "fednova_norm"."""
        ...

    def next_online(self) -> float | None:
        """The next second at which a registered client that is offline now comes online; None if there is none."""
        ...

    def rng(self, purpose: str) -> np.random.Generator:
        """A new counter-based stream keyed by (seed, purpose, number of streams drawn so far)."""
        ...

    def note(self, kind: str, data: Mapping[str, float | int | str]) -> None:
        """Log an event, as a schedule does with `Note`: why a transform or rule did what it did. Changes nothing."""
        ...
