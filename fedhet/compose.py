"""A method is one choice per axis; what cannot work together is refused before anything starts.

Three words are enough. A space *gives* ("coordinates", "control"); the server offers "each", the sight of single
updates, until a layer *hides* it; parts *need*. `Misfit` names the part, what it needs and what is offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fedhet.protocols import Layer, Policy, Rule, Schedule, Space, Work

ONION = ("optimizer", "staleness", "privacy", "codec")
"""Layer slots from the algorithm to the wire. `send` runs left to right, `arrive` and `finish` right to left."""


class Misfit(ValueError):
    """Parts of a method that cannot work together."""


@dataclass(frozen=True)
class Method:
    """One choice per axis. Layers of one slot run in the order given when sending; one layer needs no tuple."""

    schedule: Schedule
    space: Space
    rule: Rule
    work: Work
    budget: Policy
    optimizer: Layer | tuple[Layer, ...] = ()
    staleness: Layer | tuple[Layer, ...] = ()
    privacy: Layer | tuple[Layer, ...] = ()
    codec: Layer | tuple[Layer, ...] = ()
    name: str = "method"

    def __post_init__(self) -> None:
        for slot in ONION:
            given = getattr(self, slot)
            object.__setattr__(self, slot, tuple(given) if isinstance(given, list | tuple) else (given,))
            for layer in getattr(self, slot):
                if not isinstance(layer, Layer):
                    raise Misfit(f"{slot}: {type(layer).__name__} lacks a layer hook (send, wire, arrive, finish)")
        if getattr(self.rule, "guards", False):
            for part in (self.space, *(layer for _, layer in self.layers)):
                if told := getattr(part, "unguarded", ""):
                    raise Misfit(
                        f"{_named(self.rule)} bounds what single clients do to the model, but with "
                        f"{type(part).__name__} {told}: use a mean, or another part"
                    )
        offered = self.space.gives | {"each"}
        if callable(getattr(self.work, "fednova_norm", None)):
            offered |= {"norm"}
        for _, layer in self.layers:
            offered -= layer.hides
        parts: tuple[Rule | Work | Layer, ...] = (self.rule, self.work, *(layer for _, layer in self.layers))
        for part in parts:
            missing = part.needs - offered
            if missing:
                raise Misfit(
                    f"{type(part).__name__} needs {sorted(missing)}, but space {type(self.space).__name__}"
                    f"{_with(self.layers)} offers {sorted(offered) or 'nothing'}{_hidden(self.layers, missing)}"
                )

    @property
    def notices(self) -> tuple[str, ...]:
        """What the layers want to be said plainly, each once."""
        return tuple(dict.fromkeys(layer.notice for _, layer in self.layers if layer.notice))

    @cached_property
    def layers(self) -> tuple[tuple[str, Layer], ...]:
        """All layers with the name their memory is kept under, in the order of `send`."""
        return tuple((f"{slot}.{i}", layer) for slot in ONION for i, layer in enumerate(getattr(self, slot)))


def _named(rule: Rule) -> str:
    """A rule's class, and that of the rule it stands in front of."""
    inner = getattr(rule, "rule", None)
    return type(rule).__name__ + (f" of {type(inner).__name__}" if inner is not None else "")


def _with(layers: Sequence[tuple[str, Layer]]) -> str:
    names = [type(layer).__name__ for _, layer in layers]
    return f" with layers {names}" if names else ""


def _hidden(layers: Sequence[tuple[str, Layer]], missing: frozenset[str]) -> str:
    """Which layers take away what is missing."""
    told = [
        f"{type(layer).__name__} hides {sorted(layer.hides & missing)}" for _, layer in layers if layer.hides & missing
    ]
    return f": {', '.join(told)}" if told else ""
