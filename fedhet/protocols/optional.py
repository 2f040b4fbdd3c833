"""Capabilities that a plug-in may have in addition to its axis. The host asks for them with `isinstance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fedhet.protocols.axes import Shard
from fedhet.types import IndexedBatches, Job

if TYPE_CHECKING:
    from fedhet.native import BatchedStepper


@runtime_checkable
class NeedsClients(Protocol):
    """A schedule that needs a minimal number of clients."""

    def check_clients(self, clients: int) -> None:
        """Raises ValueError if it can never combine with a fleet of this size; the message names option and value."""
        ...


@runtime_checkable
class Partial(Protocol):
    """A space that declares whether each of its deltas covers only a part of the coordinates. Without this attribute
    every delta of a space covers all of them."""

    @property
    def partial(self) -> bool: ...


@runtime_checkable
class Adapters(Protocol):
    """A space of low-rank adapters."""

    @property
    def rank(self) -> int:
        """The largest rank; also the rank of a job whose budget sets none."""
        ...


@runtime_checkable
class OffersIndexedBatches(Protocol):
    """A shard that gives batches as indices into its samples, without a copy."""

    def pick(self, size: int, count: int) -> IndexedBatches:
        """The first `count` batches of `batches(size)`."""
        ...


@runtime_checkable
class Normed(Protocol):
    """Work whose displacement is a known combination of gradients; its `gives` contains "fednova_norm"."""

    def fednova_norm(self, job: Job) -> float:
        """The sum of the weights of the gradients: the number of steps for plain gradient descent."""
        ...


@runtime_checkable
class BatchedWork(Protocol):
    """Work that can train the models of several clients at once, with the same bits as one after the other."""

    @property
    def can_batch(self) -> bool:
        """Whether it can with its hyper-parameters."""
        ...

    def run_batch(
        self, rows: BatchedStepper, data: Sequence[Shard], jobs: Sequence[Job]
    ) -> Sequence[Mapping[str, float]] | None:
        """Train row c of `rows` on the data of job c; all shards have one length, all jobs one number of steps and one
        version. Returns the metrics of each job as `Work.run` reports them, or None if these jobs need `run`; the rows
        may have changed then."""
        ...


@cache
def implements(kind: type, protocol: type) -> bool:
    """Whether a class has the methods of a protocol. Cached, since `issubclass` of a protocol is slow."""
    return issubclass(kind, protocol)
