"""Base of fleets with a distribution of speeds: number of clients, network, jitter and dropout."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedhet.numerics.rng import stream
from fedhet.population.profile import Jitter
from fedhet.population.roster import Clients


class Drawn(NamedTuple):
    """Seconds per step, (clients,), and a note of how many draws were clipped or redrawn ("" if none)."""

    seconds: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class AbstractFleet(ABC):
    """A fleet whose speeds follow a distribution.

    clients: number of clients. sec_per_step: mu, seconds per optimizer step, the mean unless the distribution says
    otherwise. jitter_cv: coefficient of variation of a job's compute time. A bandwidth of None is unlimited. Raises
    ValueError for values out of range.
    """

    clients: int = 12
    sec_per_step: float = 0.1
    jitter_cv: float = 0.05
    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None
    latency_s: float = 0.0
    dropout_prob: float = 0.0

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients={self.clients} must be at least 1")
        if not 0 < self.sec_per_step < math.inf:
            raise ValueError(f"sec_per_step={self.sec_per_step} must be a positive number of seconds")

    @abstractmethod
    def speeds(self, rng: np.random.Generator) -> Drawn:
        """Seconds per step of each client."""

    def build(self, seed: int) -> Clients:
        """The roster; the numbers of samples are set later from the partition."""
        seconds, note = self.speeds(stream(seed, "fleet"))
        columns: dict[str, Any] = {
            "sec_per_step": seconds,
            "compute_jitter": Jitter("normal", self.jitter_cv) if self.jitter_cv else Jitter(),
            "latency_s": self.latency_s,
            "dropout_prob": self.dropout_prob,
        }
        for key in ("uplink_bytes_per_s", "downlink_bytes_per_s"):
            if getattr(self, key) is not None:
                columns[key] = getattr(self, key)
        return Clients.from_columns(self.clients, columns, note)

    def report(self, seed: int) -> str:
        """A note of how many of this seed's draws were clipped or redrawn."""
        return self.speeds(stream(seed, "fleet")).note or "all draws were taken as they came"
