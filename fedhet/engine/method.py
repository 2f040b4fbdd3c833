"""A method is one choice per axis; what cannot work together is refused before anything starts.

Three words are enough. A space *gives* ("coordinates", "control"), a rule gives "mean" if it is a plain weighted mean,
a work gives "fednova_norm" if it can say how much its steps weigh in an update; the server offers "each", the sight of
single updates, until a layer *hides* it, and "distances", unless updates of the space cover a part of the coordinates
each; parts *need*. `Misfit` names the part, what it needs and what is offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fedhet.protocols import BudgetPolicy, Partial, Rule, Schedule, Space, Transform, Work

ONION = ("optimizer", "staleness", "privacy", "codec")
"""Transform slots from the algorithm to the wire. `send` runs left to right, `arrive` and `finish` right to left."""
WHY = {
    "mean": "what it adds to the model goes past the rule, so behind any other rule nothing would be protected: "
    "use a plain weighted mean (rule=mean, mean_count, mean_uniform)",
    "fednova_norm": "updates are divided by what the local steps add up to, which this work does not say: use "
    "work=sgd, fedprox, feddyn or scaffold",
    "distances": "updates that cover a part each are near to each other where they cover little, so the narrowest "
    "would be chosen: use a rule that does not compare updates",
}
"""What a word stands for, where its name does not say it."""


class Misfit(ValueError):
    """Parts of a method that cannot work together."""


@dataclass(frozen=True)
class Method:
    """One choice per axis. Layers of one slot run in the order given when sending; one layer needs no tuple."""

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
        for slot in ONION:
            given = getattr(self, slot)
            object.__setattr__(self, slot, tuple(given) if isinstance(given, list | tuple) else (given,))
            for layer in getattr(self, slot):
                if not isinstance(layer, Transform):
                    raise Misfit(f"{slot}: {type(layer).__name__} lacks a layer hook (send, wire, arrive, finish)")
        words: list[frozenset[str]] = [getattr(part, "gives", frozenset()) for part in (self.rule, self.work)]
        offered = self.space.gives.union(*words) | {"each"}
        if not (isinstance(self.space, Partial) and self.space.partial):
            offered |= {"distances"}
        for _, layer in self.transforms:
            offered -= layer.hides
        parts: tuple[Space | Rule | Work | Transform, ...] = (
            self.space, self.rule, self.work, *(layer for _, layer in self.transforms),
        )  # fmt: skip
        for part in parts:
            missing = frozenset(getattr(part, "needs", frozenset())) - offered
            if missing:
                raise Misfit(
                    f"{type(part).__name__} needs {sorted(missing)}, but space {type(self.space).__name__}"
                    f" with rule {type(self.rule).__name__}, work {type(self.work).__name__}{_with(self.transforms)}"
                    f" offers {sorted(offered) or 'nothing'}{_hidden(self.transforms, missing)}{_why(missing)}"
                )

    @property
    def notices(self) -> tuple[str, ...]:
        """What the layers want to be said plainly, each once."""
        return tuple(dict.fromkeys(layer.notice for _, layer in self.transforms if layer.notice))

    @cached_property
    def transforms(self) -> tuple[tuple[str, Transform], ...]:
        """All layers with the name their memory is kept under, in the order of `send`."""
        return tuple((f"{slot}.{i}", layer) for slot in ONION for i, layer in enumerate(getattr(self, slot)))


def _with(layers: Sequence[tuple[str, Transform]]) -> str:
    names = [type(layer).__name__ for _, layer in layers]
    return f" and layers {names}" if names else ""


def _why(missing: frozenset[str]) -> str:
    return "".join(f"; {WHY[word]}" for word in sorted(missing) if word in WHY)


def _hidden(layers: Sequence[tuple[str, Transform]], missing: frozenset[str]) -> str:
    """Which layers take away what is missing."""
    told = [
        f"{type(layer).__name__} hides {sorted(layer.hides & missing)}" for _, layer in layers if layer.hides & missing
    ]
    return f": {', '.join(told)}" if told else ""
