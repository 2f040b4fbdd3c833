"""The methods of the study: their options, and the candidate learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedhet.protocols import Space, View
from fedhet.provenance import source_tree
from fedhet.types import Tree, Update

RATE = (0.01,)
"""One rate for nearly all: of 0.003, 0.01 and 0.03 a sweep found the middle one best for adapters kept warm."""

PRUNED = ("space.by_norm=true", "space.decay=0.99")


@dataclass(frozen=True)
class Method:
    """`space` and `values` inside it; `equal`, `unequal`: with clients of which ranks it is run."""

    space: str
    values: tuple[str, ...] = ()
    equal: bool = True
    unequal: bool = True
    rates: tuple[float, ...] = RATE
    rule: str = "mean"

    @property
    def there(self) -> bool:
        return (source_tree.conf() / "space" / f"{self.space}.yaml").is_file()

    @property
    def adapters(self) -> bool:
        return self.space != "full"

    @property
    def overrides(self) -> list[str]:
        """Parts of the method; who gets which rank follows from what the clients declare."""
        budget = "by_memory" if self.adapters else "fixed"
        return [
            "schedule=sync",
            f"space={self.space}",
            f"rule={self.rule}",
            "work=adam",
            f"budget={budget}",
            *self.values,
        ]


METHODS = {
    "FLoRA": Method("stacked_lora", rates=(0.01, 0.03)),
    "FedIT": Method("padded_lora", unequal=False),
    "zero-padding": Method("padded_lora", equal=False),
    "exact-warm": Method("exact_warm"),
    "FlexLoRA": Method("flex"),
    "FedEx-LoRA": Method("fedex", unequal=False),
    "HetLoRA weights": Method("padded_lora", ("space.by_norm=true",), equal=False),
    "HetLoRA": Method("padded_lora", (*PRUNED, "space.penalty=0.01"), equal=False),
    "HetLoRA, penalty 1": Method("padded_lora", (*PRUNED, "space.penalty=1"), equal=False),
    "FFA-LoRA": Method("ffa", rates=(0.03,)),
    "RoLoRA": Method("rolora", unequal=False),
    "FLoRIST 0.95": Method("florist"),
    "zero-padding, increments": Method("padded_lora", ("space.target=increment",), equal=False),
    "FlexLoRA, increments": Method("flex", ("space.target=increment",), equal=False),
    "FLoRA, one start a round": Method("stacked_lora", ("space.same_start=true",), unequal=False, rates=(0.01, 0.03)),
    "FLoRA, sampled rows": Method("stacked_lora", ("space.pool=2",), rates=(0.01, 0.03)),
    "FedIT as in public code": Method("padded_lora", unequal=False, rule="first_only"),
    "full": Method("full", unequal=False, rates=(0.003, 0.01)),
}


@dataclass(frozen=True)
class FirstOnly:
    """What a public implementation of FedIT does: the sum over the other clients goes to a variable of another name,
    so that the new factors are p_1 A_1 and p_1 B_1 of the first client."""

    needs = frozenset({"each", "coordinates"})

    def __call__(self, updates: Sequence[Update], space: Space, view: View) -> Tree:
        share = updates[0].weight / sum(u.weight for u in updates)
        state = dict(view.state.items())
        return {n: share * leaf - (1.0 - share) * state[f"factor/{n}"] for n, leaf in updates[0].delta.items()}
