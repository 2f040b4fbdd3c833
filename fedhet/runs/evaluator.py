"""Evaluation of the model during a run: when, and what is logged. It observes the server and does not change it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedhet.engine.server import Server
from fedhet.flower.event_loop import EventLoop
from fedhet.model.flat_model import Model
from fedhet.runs.event_log import Record
from fedhet.world import Scores, World


@dataclass(frozen=True)
class Best:
    """The most accurate version evaluated so far; of equal ones the first. `tensors` is its module's state_dict, or
    None if an earlier process of this run evaluated it and the run folder has the file."""

    accuracy: float
    version: int
    tensors: Mapping[str, Tensor] | None


@dataclass
class Evaluator:
    """Evaluates versions on the server's test data: every `every_versions` versions, and not more often than once in
    `every_seconds` seconds of the run's clock. `keep_best` stores the weights of the most accurate version. `seen` is
    called with every evaluation."""

    world: World
    model: Model
    record: Record
    target: float
    every_versions: int = 1
    every_seconds: float = 0.0
    keep_best: bool = False
    version: int = -1
    due: float = 0.0
    time_to_target: float | None = None
    scores: Scores | None = None
    best: Best | None = None
    seen: Callable[[Server, Scores], None] = field(default=lambda server, scores: None)

    def __post_init__(self) -> None:
        check_rhythm(self.every_versions, self.every_seconds)

    def reached(self, server: Server, target: float) -> bool:
        """Whether the server's present version was evaluated and its accuracy is at least `target`."""
        return self.scores is not None and self.version == server.version and self.scores.accuracy >= target

    def evaluate_if_due(self, loop: EventLoop, *, force: bool = False) -> None:
        """Evaluate if it is due, or with `force` if this version was not evaluated yet."""
        server = loop.server
        if server.version == self.version:
            return
        due = server.version - self.version >= self.every_versions and server.now >= self.due
        if not (due or force):
            return
        self.version, self.due = server.version, server.now + self.every_seconds
        server.space.restore(self.model, server.state)
        self.scores = scores = self.world.evaluate(self.model).without(server.absent)
        if self.best is None or scores.accuracy > self.best.accuracy:
            tensors = self.model.module.state_dict() if self.keep_best else {}
            self.best = Best(scores.accuracy, server.version, {k: v.detach().clone() for k, v in tensors.items()})
        if self.time_to_target is None and scores.accuracy >= self.target:
            self.time_to_target = server.now
        self.record.metrics.write(
            {
                "t": server.now,
                "version": server.version,
                "accuracy": scores.accuracy,
                "loss": scores.loss,
                "worst_decile_accuracy": scores.worst_decile,
                "bytes_up": loop.bytes_up,
                "bytes_down": loop.bytes_down,
                "client_tasks": server.landed,
            }
        )
        self.seen(server, scores)


def check_rhythm(every_versions: int, every_seconds: float) -> None:
    """Raises ValueError for a number of versions below 1, or seconds below 0."""
    if every_versions < 1:
        raise ValueError(f"evaluate.every_versions={every_versions} must be 1 or more")
    if not (every_seconds >= 0 and math.isfinite(every_seconds)):
        raise ValueError(f"evaluate.every_seconds={every_seconds} must be 0 or more seconds")
