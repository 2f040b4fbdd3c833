"""A method is one choice per axis; parts that cannot work together are refused before a run starts.

Parts declare capabilities in three attributes. `gives`: a space gives "coordinates" or "control", a rule gives "mean"
if it is a plain weighted mean, a work gives "fednova_norm" if it can report the weight of its steps in an update. The
server offers "each", access to single updates, and "distances", unless each update of the space covers only a part of
the coordinates. `hides`: a transform removes a capability. `needs`: a part requires one. `Misfit` names the part, what
it needs and what is offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fedhet.protocols import BudgetPolicy, Partial, Rule, Schedule, Space, Transform, Work

TRANSFORM_SLOTS = ("optimizer", "staleness", "privacy", "codec")
"""Transform slots from the algorithm to the wire. `send` runs left to right, `arrive` and `finish` right to left."""


CAPABILITY_HINTS = {
    "mean": "what it adds to the model goes past the rule, so behind any other rule nothing would be protected: "
    "use a plain weighted mean (rule=mean, mean_count, mean_uniform)",
    "fednova_norm": "updates are divided by the sum of the step weights, which this work does not report: use "
    "work=sgd, fedprox, feddyn or scaffold",
    "distances": "updates that cover a part each are near to each other where they cover little, so the narrowest "
    "would be chosen: use a rule that does not compare updates",
}
"""Why a capability is needed and which options have it, for error messages."""


class Misfit(ValueError):
    """Parts of a method that cannot work together."""


@dataclass(frozen=True)
class Method:
    """One choice per axis. Transforms of one slot run in the given order in `send`; a single one needs no tuple.

    Raises Misfit if parts cannot work together.
    """

    schedule: Schedule
    space: Space
    rule: Rule
    work: Work
    budget: BudgetPolicy
    optimizer: Transform | tuple[Transform, ...] = ()
    staleness: Transform | tuple[Transform, ...] = ()
    privacy: Transform | tuple[Transform, ...] = ()
    codec: Transform | tuple[Transform, ...] = ()
    name: str = "method"

    def __post_init__(self) -> None:
        for slot in TRANSFORM_SLOTS:
            given = getattr(self, slot)
            object.__setattr__(self, slot, tuple(given) if isinstance(given, list | tuple) else (given,))
            for transform in getattr(self, slot):
                if not isinstance(transform, Transform):
                    raise Misfit(
                        f"{slot}: {type(transform).__name__} lacks a transform hook (send, wire, arrive, finish)"
                    )
        words: list[frozenset[str]] = [getattr(part, "gives", frozenset()) for part in (self.rule, self.work)]
        offered = self.space.gives.union(*words) | {"each"}
        if not (isinstance(self.space, Partial) and self.space.partial):
            offered |= {"distances"}
        for _, transform in self.transforms:
            offered -= transform.hides
        parts: tuple[Space | Rule | Work | Transform, ...] = (
            self.space, self.rule, self.work, *(transform for _, transform in self.transforms),
        )  # fmt: skip
        for part in parts:
            missing = frozenset(getattr(part, "needs", frozenset())) - offered
            if missing:
                raise Misfit(
                    f"{type(part).__name__} needs {sorted(missing)}, but space {type(self.space).__name__}"
                    f" with rule {type(self.rule).__name__}, work {type(self.work).__name__}{_with(self.transforms)}"
                    f" offers {sorted(offered) or 'nothing'}{_hidden(self.transforms, missing)}{_hints(missing)}"
                )

    @property
    def notices(self) -> tuple[str, ...]:
        """The notices of all transforms, each once."""
        return tuple(dict.fromkeys(transform.notice for _, transform in self.transforms if transform.notice))

    @cached_property
    def transforms(self) -> tuple[tuple[str, Transform], ...]:
        """All transforms with the names of their memories, in the order of `send`."""
        return tuple(
            (f"{slot}.{i}", transform) for slot in TRANSFORM_SLOTS for i, transform in enumerate(getattr(self, slot))
        )


def _with(transforms: Sequence[tuple[str, Transform]]) -> str:
    names = [type(transform).__name__ for _, transform in transforms]
    return f" and transforms {names}" if names else ""


def _hints(missing: frozenset[str]) -> str:
    return "".join(f"; {CAPABILITY_HINTS[word]}" for word in sorted(missing) if word in CAPABILITY_HINTS)


def _hidden(transforms: Sequence[tuple[str, Transform]], missing: frozenset[str]) -> str:
    """Which transforms hide the missing capabilities."""
    hiding = [
        f"{type(transform).__name__} hides {sorted(transform.hides & missing)}"
        for _, transform in transforms
        if transform.hides & missing
    ]
    return f": {', '.join(hiding)}" if hiding else ""
