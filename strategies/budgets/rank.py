"""Base of budgets that choose the largest LoRA rank that fits a client.

Candidates are the powers of two below the client's limit, and that limit: the smaller of `max_rank` and the rank the
client declares (0: no limit). The cost of a rank follows from the update that the space expects for a job of that rank:
c(r) parameters are trained and sent. The largest candidate that fits is used; if none fits, an error names the client.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from fedhet.numerics.tree import Leaf, Schema
from fedhet.population.profile import Profile
from fedhet.protocols import View
from fedhet.types import Budget, ClientId, Job
from strategies.budgets.fixed import Fixed

DROPPED_ROW_BYTES = 4.0
"""Bytes per parameter of a pool, in addition to its rows: a copy of each row from when it was last dropped."""


@dataclass(frozen=True)
class AbstractRank(ABC):
    """Steps as in `Fixed`, and the largest rank that fits the client.

    steps, or epochs with batch: local work. batch, positions: samples per step and positions per sample (the characters
    of a sequence, 1 for one vector), for the compute and memory of a step. max_rank: upper bound of all ranks, at most
    the space's. pool: rows that a client stores per row that it trains and sends at a time, the same as the space's;
    memory counts this many times. base_bytes: memory of a job that does not depend on the rank, best measured once at
    rank 1; None: the bytes of the model sent. bytes_per_parameter: memory per trained parameter; 16 are weight,
    gradient and Adam's two moments in float32. activation_bytes: memory for the backward pass per position, rank and
    factor.

    Raises ValueError for values out of range, and for a job of a client for which rank 1 does not fit.
    """

    steps: int | None = None
    epochs: int | None = None
    batch: int = 32
    positions: int = 1
    width: float = 1.0
    max_rank: int = 8
    pool: int = 1
    base_bytes: float | None = None
    bytes_per_parameter: float = 16.0
    activation_bytes: float = 4.0

    def __post_init__(self) -> None:
        Fixed(self.steps, self.epochs, self.batch, width=self.width)  # raises the same errors
        for name in ("positions", "max_rank", "pool"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.base_bytes is not None and not 0 <= self.base_bytes < math.inf:
            raise ValueError(f"base_bytes={self.base_bytes} must be 0 or more bytes; null: those of the model sent")
        for name in ("bytes_per_parameter", "activation_bytes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more bytes")

    @abstractmethod
    def fits(self, profile: Profile, rank: int, steps: int, cost: Cost) -> bool:
        """Whether `steps` steps at this rank fit the client."""

    @abstractmethod
    def fitted(self, profile: Profile, rank: int, steps: int, cost: Cost) -> int:
        """The number of steps of the job at this rank, at most `steps`."""

    def __call__(self, client: ClientId, view: View) -> Budget:
        found = self._found(client, view)
        if found.rank == 0:
            raise ValueError(
                f"client {view.roster[client].name or client} cannot afford rank 1 by {type(self).__name__}: leave "
                "it out, or let fewer layers have adapters (space.targets)"
            )
        return found

    def rank(self, client: ClientId, view: View) -> int:
        """The client's rank; 0 if none fits."""
        return self._found(client, view).rank

    def _found(self, client: ClientId, view: View) -> Budget:
        steps = Fixed(self.steps, self.epochs, self.batch)(client, view).steps
        profile = view.roster[client]
        for rank in reversed(ladder(min(self.max_rank, profile.max_rank or self.max_rank))):
            cost = Cost.of(client, rank, view)
            if self.fits(profile, rank, steps, cost):
                return Budget(self.fitted(profile, rank, steps, cost), rank, self.width)
        return Budget(steps, 0, self.width)

    def in_memory(self, profile: Profile, rank: int, cost: Cost) -> bool:
        """M_0 + pool * (c(r) * each + r * activation_bytes * (factors * positions per step)) <= M.

        `each` is bytes_per_parameter, plus DROPPED_ROW_BYTES with a pool. It is an upper bound for a layer with fewer
        inputs or outputs than pool * r.
        """
        base = cost.base_bytes if self.base_bytes is None else self.base_bytes
        activations = self.activation_bytes * rank * cost.factors * self.batch * self.positions
        each = self.bytes_per_parameter + (DROPPED_ROW_BYTES if self.pool > 1 else 0.0)
        return base + self.pool * (each * cost.parameters + activations) <= profile.memory_bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a rank: trained parameters, their bytes, tensors with a dimension of that rank, bytes of the model."""

    parameters: int
    sent_bytes: int
    factors: int
    base_bytes: int

    @classmethod
    def of(cls, client: ClientId, rank: int, view: View) -> Cost:
        """Raises ValueError if the space sends the same at any rank."""
        schema, one, two = (_expected(client, r, view) for r in (rank, 1, 2))
        factors = sum(leaf != two[name] for name, leaf in one.items())
        if not factors:
            raise ValueError(
                f"{type(view.space).__name__} sends the same at any rank: a budget of ranks needs a space of factors"
            )
        return cls(schema.size, schema.nbytes, factors, _nbytes(Schema.of(view.state)))


def ladder(limit: int) -> list[int]:
    """1, 2, 4, 8, ... below the limit, and the limit."""
    return [*(1 << k for k in range((limit - 1).bit_length())), limit]


def _expected(client: ClientId, rank: int, view: View) -> Schema:
    return view.space.expects(view.state, Job(0, client, view.version, 0, Budget(1, rank), view.now))


def _nbytes(leaves: Mapping[str, Leaf]) -> int:
    return sum(leaf.nbytes for leaf in leaves.values())
