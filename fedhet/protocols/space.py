"""The protocol of a space: what is sent to a client, how it is installed, and how deltas combine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from fedhet.types import Job, Tree

if TYPE_CHECKING:
    import numpy as np

    from fedhet.model.flat_model import Model
    from fedhet.numerics.tree import Schema


class Space(Protocol):
    """What is sent, how it is installed, how it combines. Server half and client half of one geometry."""

    @property
    def gives(self) -> frozenset[str]:
        """ "coordinates" if the leaves of two deltas line up element by element; "flat" if a payload is the model's
        complete buffer, and the delta its change."""
        ...

    # server
    def begin(self, model: Model) -> Tree:
        """The first state, from the model's initial parameters."""
        ...

    def offer(self, state: Tree, job: Job) -> Tree:
        """The payload for a job. Return `state` itself when all clients get the same: it is then packed once."""
        ...

    def expects(self, state: Tree, job: Job) -> Schema:
        """Names, shapes and dtypes of the delta that answers this job; the gate refuses any other."""
        ...

    def decode_delta(self, before: Tree, job: Job, delta: Tree) -> Tree:
        """The delta that takes part in a combination, from the one that a device sent; `before` is the state that its
        job started from. For spaces whose devices leave out what the server knows; others return `delta` itself."""
        ...

    def split_optimized(self, delta: Tree) -> tuple[Tree, Tree]:
        """A combined delta in two parts: the step of the model, which server optimizers change, and leaves that they
        leave as they are. All leaves of the first come before those of the second; in most spaces the second is
        empty."""
        ...

    def merge(self, state: Tree, delta: Tree) -> Tree:
        """The next state, as a new tree; `state` does not change."""
        ...

    def restore(self, model: Model, state: Tree) -> None:
        """Put the server's state into a complete model, to evaluate or save it."""
        ...

    # geometry
    def gram(self, deltas: Sequence[Tree]) -> np.ndarray:
        """All inner products, float64, shape (n, n)."""
        ...

    def combine(
        self, deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None
    ) -> Tree:
        """sum_i coefficients[i] * scales[i] * deltas[i], accumulated in the order given, where all deltas cover.

        Coefficients are the shares that the rule chose; scales are a part of the updates (`Update.scale`, or a rule's
        clipping), 1 by default. A coordinate that only some deltas cover is the mean over those, times the sum of all
        shares:

            x_k = (sum_j c_j) * sum_i c_i s_i d_ik / sum_i c_i,   the last two sums over those who cover k,

        so a scale still counts where one delta alone covers a coordinate, and no covered coordinate is dropped.
        """
        ...

    # client
    def install(self, model: Model, payload: Tree, job: Job) -> None:
        """Put the payload into a model that served other jobs before. Leaves that this puts into `model.extras` under
        a name that begins with "kept." are stored as this client's state and are there again at its next job."""
        ...

    def extract(self, model: Model, payload: Tree) -> Tree:
        """delta = after - before, where `payload` is before. May change the client's "kept." leaves. A number in
        `model.extras` under a name that begins with "told." joins the update's metrics."""
        ...
