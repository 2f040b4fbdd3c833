"""The registered clients, as plug-ins read them, and the clock of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from fedhet.types import ClientId

if TYPE_CHECKING:
    import numpy as np

    from fedhet.population.profile import Profile


class Roster(Protocol):
    """Every registered client and its profile, as a mapping. A profile is built when it is read, so memory does not
    grow with the number of clients."""

    def __getitem__(self, client: ClientId, /) -> Profile: ...
    def __contains__(self, client: object, /) -> bool: ...
    def __iter__(self) -> Iterator[ClientId]: ...
    def __len__(self) -> int: ...

    @property
    def total_examples(self) -> int:
        """Training samples of all registered clients."""
        ...

    def examples(self, client: ClientId) -> int:
        """Training samples of one client, without building its profile."""
        ...


class Idle(Protocol):
    """Clients that can take a job now: registered, online, no job assigned or in flight."""

    def __len__(self) -> int: ...
    def __contains__(self, client: object) -> bool: ...
    def __iter__(self) -> Iterator[ClientId]:
        """In ascending order. Costs one pass over the registry: prefer `sample` in large fleets."""
        ...

    def sample(self, k: int, rng: np.random.Generator) -> list[ClientId]:
        """Up to `k` distinct idle clients, uniform without replacement, in ascending order; cost O(k)."""
        ...


class Observation(Protocol):
    """What the server measured of a client: counts of finished and failed jobs, and the latest seconds per step. It is
    the only speed that the server trusts."""

    @property
    def finished(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def seconds_per_step(self) -> float | None: ...


class Clock(Protocol):
    """Seconds since the start of the run."""

    def now(self) -> float: ...
    def wait(self, until: float | None) -> None:
        """Return at `until` or when a message may have arrived, whichever is first."""
        ...
