"""The verbs: one small protocol per axis. Read this first; everything else is built from it.

    Schedule  who trains when, and when to combine      strategies/schedules
    BudgetPolicy    how much work a client gets               strategies/budgets
    Space     what is sent, installed and combined      strategies/spaces
    Rule      N updates to one                          strategies/rules
    Transform     staleness, codec, privacy, optimizer      strategies/{staleness,codecs,privacy,optimizers}
    Work      local training                            clients/work

Plug-ins are frozen dataclasses of hyper-parameters. What changes lives in a `Memory` the host keeps, except for a
`Schedule`, whose fields are plain data (numbers, strings, lists, dicts, sets, nested dataclasses) that can be saved.

What a protocol reads it declares as a property: a class variable, a field of a frozen dataclass and a property all do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from fedhet import former_names
from fedhet.types import Budget, ClientId, Command, Event, IndexedBatches, Job, JobId, Memory, Tree, Update, Version

if TYPE_CHECKING:
    from fedhet.model.flat_model import Model
    from fedhet.native import BatchedStepper
    from fedhet.numerics.tree import Schema
    from fedhet.population.profile import Profile


class Roster(Protocol):
    """Every registered client and its profile, as a mapping. Profiles are built on demand: no cost grows with it."""

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
    """Clients that could take a job now: registered, online, no job assigned or in flight."""

    def __len__(self) -> int: ...
    def __contains__(self, client: object) -> bool: ...
    def __iter__(self) -> Iterator[ClientId]:
        """In ascending order. Costs one pass over the registry: prefer `sample` in large fleets."""
        ...

    def sample(self, k: int, rng: np.random.Generator) -> list[ClientId]:
        """Up to `k` distinct idle clients, uniform without replacement, in ascending order; cost O(k)."""
        ...


class Observation(Protocol):
    """What the server itself saw of a client, the only speed it trusts: counts, and the latest seconds per step."""

    @property
    def finished(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def seconds_per_step(self) -> float | None: ...


class View(Protocol):
    """Read-only: all that a plug-in may know of the server. It is live: it changes as commands are carried out."""

    @property
    def now(self) -> float: ...
    @property
    def version(self) -> Version: ...
    @property
    def state(self) -> Tree: ...
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
        """Dispatched and unanswered, in order of dispatch."""
        ...

    @property
    def buffer(self) -> Mapping[JobId, Job]:
        """Accepted and not yet combined, in order of arrival."""
        ...

    @property
    def cohort(self) -> Sequence[Job]:
        """The jobs being combined right now, sorted by (client, job); empty outside a combination."""
        ...

    def base(self, version: Version) -> Tree:
        """The model that `version` was. Kept exactly while an unfinished or buffered job started from it."""
        ...

    def observed(self, client: ClientId) -> Observation: ...

    def fednova_norm(self, job: Job) -> float:
        """The sum of the weights that the gradients of a job have in its displacement, by its budget and the method's
        work. For rules that need "fednova_norm"."""
        ...

    def next_online(self) -> float | None:
        """The next second at which some registered client that is offline now comes online; None if never."""
        ...

    def rng(self, purpose: str) -> np.random.Generator:
        """A fresh counter-based stream keyed by (seed, purpose, number of streams drawn so far)."""
        ...

    def note(self, kind: str, data: Mapping[str, float | int | str]) -> None:
        """A row for the record, as a schedule's `Note`: why a layer or rule did what it did. Changes nothing."""
        ...


class Schedule(Protocol):
    """Events in, commands out. Sees no tensor, clock or thread; each command is carried out before the next is asked
    for, so after `yield Aggregate(...)` the same function sees the new `view.version`."""

    def react(self, event: Event, view: View) -> Iterable[Command]: ...


@runtime_checkable
class NeedsClients(Protocol):
    """A schedule that cannot combine anything with too few clients."""

    def check_clients(self, clients: int) -> None:
        """Raises ValueError if it never could with a fleet of so many; the message names the option and the value."""
        ...


class BudgetPolicy(Protocol):
    """Decides a client's budget from its profile and what was observed of it."""

    def __call__(self, client: ClientId, view: View) -> Budget: ...


class Space(Protocol):
    """What is sent, how it is installed, how it combines. Server half and client half of one geometry."""

    @property
    def gives(self) -> frozenset[str]:
        """ "coordinates" if the leaves of two deltas line up element by element; "flat" if a payload is the model's
        whole buffer, and the delta its change."""
        ...

    # server
    def begin(self, model: Model) -> Tree:
        """The first state, from the model's initial parameters."""
        ...

    def offer(self, state: Tree, job: Job) -> Tree:
        """The payload for a job. Return `state` itself when everybody gets the same: it is then packed once."""
        ...

    def expects(self, state: Tree, job: Job) -> Schema:
        """Names, shapes and dtypes of the delta this job must bring; the gate holds the answer against it."""
        ...

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        """What a device sent, as it takes part in a combination; `before` is the state its job started from. For
        spaces whose devices leave out what the server knows; others return `delta` itself."""
        ...

    def split_optimized(self, delta: Tree) -> tuple[Tree, Tree]:
        """A combined delta as the model's step, which server optimizers move, and what travels beside it and is left
        as it is; all leaves of the first come before those of the second. Most spaces have nothing beside it."""
        ...

    def merge(self, state: Tree, delta: Tree) -> Tree:
        """The next state; a new tree, `state` is left as it is."""
        ...

    def restore(self, model: Model, state: Tree) -> None:
        """Put the server's state into a whole model, to evaluate or save it."""
        ...

    # geometry
    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        """All inner products, float64, shape (n, n)."""
        ...

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        """sum_i coefficients[i] * scales[i] * deltas[i], accumulated in the order given, where all deltas cover.

        Coefficients are shares, which the rule chose; scales are part of the updates (`Update.scale`, cuts of a rule),
        1 if none are given.
        A coordinate that only some cover is the mean over those, with the sum of all shares:

            x_k = (sum_j c_j) * sum_i c_i s_i d_ik / sum_i c_i,   the last two sums over those who cover k,

        so that the scale of one who covers it alone is not divided away. Nobody's coordinates are left out.
        """
        ...

    # client
    def install(self, model: Model, payload: Tree, job: Job) -> None:
        """Put the payload into a model that served other jobs before. What is left in `model.extras` under a name
        that begins with "kept." stays with this client, and lies there again at its next job."""
        ...

    def extract(self, model: Model, payload: Tree) -> Tree:
        """delta = after - before, with `payload` the before. What is kept for the client may change here, too. A
        number left in `model.extras` under a name that begins with "told." joins the update's metrics."""
        ...


@runtime_checkable
class Partial(Protocol):
    """A space that can say that its deltas cover a part of the coordinates each; one that says nothing covers all."""

    @property
    def partial(self) -> bool: ...


@runtime_checkable
class Adapters(Protocol):
    """A space of low-rank adapters."""

    @property
    def rank(self) -> int:
        """The largest; that of a job whose budget names none."""
        ...


class Rule(Protocol):
    """N updates to one delta. Must honour `Update.scale` and normalise `Update.weight` itself.

    A rule that is a plain weighted mean has `gives`, with "mean": an update moves its answer as far as it is long, so
    nothing is lost by what goes past the rule.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Of these words: "each", sight of single updates; "coordinates", leaves that line up; "distances", inner
        products that compare like with like; "fednova_norm", work that says what its steps add up to."""
        ...

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree: ...


@runtime_checkable
class Transform(Protocol):
    """Two halves of one idea around the wire; see `fedhet.bases.AbstractTransform` for the identity."""

    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def hides(self) -> frozenset[str]: ...
    @property
    def notice(self) -> str:
        """What whoever runs this must know before it starts, such as what the server learns; empty if nothing."""
        ...

    def send(self, update: Update, memory: Memory) -> Update:
        """Client: after training, before the wire. `memory` is this client's."""
        ...

    def wire(self, schema: Schema) -> Schema:
        """What `send` makes of a delta with this schema, so that the gate knows what to expect."""
        ...

    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        """Server, per answer, at the moment of combination. `memory` is the layer's, shared by all clients."""
        ...

    def finish(self, delta: Tree, view: View, memory: Memory) -> Tree:
        """Server, once per combination, on the rule's result; returns the step that is added to the model."""
        ...


class Shard(Protocol):
    """One client's training data as one job sees it; its streams are keyed by (seed, client, turn)."""

    def __len__(self) -> int: ...
    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless mini-batches: shuffled epochs, the last batch of an epoch may be smaller."""
        ...

    def all_samples(self) -> tuple[Tensor, Tensor]:
        """All samples, in storage order."""
        ...

    def rng(self, purpose: str) -> np.random.Generator:
        """A stream of this client's job, for noise or augmentation."""
        ...


@runtime_checkable
class OffersIndexedBatches(Protocol):
    """A shard that need not copy anything for a batch."""

    def pick(self, size: int, count: int) -> IndexedBatches:
        """The first `count` of `batches(size)`."""
        ...


@cache
def keeps(kind: type, protocol: type) -> bool:
    """Whether a class has the methods of a protocol; Python takes its time to say so, and needs to once."""
    return issubclass(kind, protocol)


class Work(Protocol):
    """Local training. Changes the model in place and reports finite scalar metrics (at least "loss")."""

    @property
    def needs(self) -> frozenset[str]:
        """Names the space must give beyond sending parameters, such as "control" for control variates."""
        ...

    @property
    def batch(self) -> int:
        """Samples per optimiser step, so that epochs and virtual time can be worked out."""
        ...

    def run(self, model: Model, data: Shard, job: Job, memory: Memory) -> Mapping[str, float]: ...


@runtime_checkable
class Normed(Protocol):
    """Work whose displacement is a known combination of gradients; it has `gives`, with "fednova_norm"."""

    def fednova_norm(self, job: Job) -> float:
        """The sum of the weights its gradients have: the number of steps for plain gradient descent."""
        ...


@runtime_checkable
class BatchedWork(Protocol):
    """Work that can do the jobs of several clients side by side, with the bits of one after the other."""

    @property
    def can_batch(self) -> bool:
        """Whether it can as it is set."""
        ...

    def run_batch(
        self, rows: BatchedStepper, data: Sequence[Shard], jobs: Sequence[Job]
    ) -> Sequence[Mapping[str, float]] | None:
        """Train row c of `rows` on the data of job c, all of one length, number of steps and version; metrics as
        `Work.run` reports them. None if these jobs are for `run` alone; the rows may have changed then."""
        ...


class Clock(Protocol):
    """Seconds since the start of the run."""

    def now(self) -> float: ...
    def wait(self, until: float | None) -> None:
        """Return at `until` or when something may have arrived, whichever is first."""
        ...


def __getattr__(name: str) -> Any:
    return former_names.renamed(__name__, name)
