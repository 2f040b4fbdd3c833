"""The adapters of a module on a device: injected by peft, one set per rank, each in flat buffers of its own.

One model object serves jobs of clients of any rank. The module is wrapped once; a new rank costs one injection, a known
rank a switch, and the adapters of a rank compute with that rank and no mask. The base weights are frozen; the trained
parameters (adapters, and the parameters sent in full) are in the rank's own buffer, so that local work sees a short
flat vector as with any model.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from fedhet.model.flat_model import Model
from fedhet.numerics.tree import Leaf, Schema
from strategies.spaces.lora.factors import Pair
from strategies.spaces.lora.layers import Shape, parameter
from strategies.spaces.lora.names import FROZEN, WHOLE, A, B, layer_of

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


@dataclass(frozen=True)
class Kind:
    """The configuration of adapters: rank and scaling per layer, `dropout` before A, and which of A and B train."""

    ranks: tuple[int, ...]
    scalings: tuple[float, ...]
    dropout: float = 0.0
    trained: tuple[str, ...] = (A, B)

    @property
    def name(self) -> str:
        """The adapter's name in peft, whose keys must not have dots."""
        return "_".join(f"r{r}s{s}" for r, s in zip(self.ranks, self.scalings, strict=True)).replace(".", "p")


class Follower(Protocol):
    """A hook into the training of one job."""

    def step(self) -> None:
        """Called before every forward pass of training."""
        ...

    def close(self) -> None:
        """Called when the job is over, possibly more than once: removes its hooks."""
        ...


@dataclass
class Panel:
    """One kind's adapters: live factors by layer and name, and the flat buffer of everything that is trained."""

    kind: Kind
    factors: dict[str, dict[str, nn.Parameter]]
    schema: Schema
    flat: Tensor
    grad: Tensor
    starts: Mapping[str, Pair] = field(default_factory=dict)
    """The products the adapters were filled with, scaling 1, by layer."""
    follower: Follower | None = None
    """The hook into the training of one job, if there is one."""


class LoraHost(nn.Module):
    """The wrapped module.

    `shapes` are its adapted layers, `whole` the parameters that are trained in full in addition, `bases` every
    parameter and buffer of the module by its own name.
    """

    def __init__(self, model: Model, shapes: Mapping[str, Shape], whole: Sequence[str]) -> None:
        super().__init__()
        self.inner = model.module
        self.shapes, self.whole = dict(shapes), tuple(whole)
        live = {**dict(self.inner.named_parameters()), **dict(self.inner.named_buffers())}
        self.bases: dict[str, Tensor] = {name: live[name] for name in model.schema}
        self.base_schema = model.schema
        self.held: Mapping[str, Tensor] = {}
        self.mark = b""
        """The base weights in the module, as received, and their hash."""
        self.panel: Panel | None = None
        self._panels: dict[Kind, Panel] = {}

    def forward(self, *args: object, **given: object) -> object:
        if self.training and self.panel is not None and self.panel.follower is not None:
            self.panel.follower.step()
        return self.inner(*args, **given)

    def load(self, base: Mapping[str, Tensor], held: Mapping[str, Tensor] | None = None, mark: bytes = b"") -> None:
        """Copy base weights into the module, except frozen ones that are there already.

        `mark` is their hash, and `held` the client's copy of them for the next job.
        """
        again = mark == self.mark and bool(mark)
        for name, leaf in base.items():
            live = self.bases[name]
            if not again or name in self.whole or not isinstance(live, nn.Parameter):
                live.data.copy_(self.stored(name, leaf))
        self.held, self.mark = held or {}, mark

    def overwrite(self, weights: Mapping[str, Tensor]) -> None:
        """Replace weights for one job; the base is copied again before the next one."""
        for name, leaf in weights.items():
            self.bases[name].data.copy_(self.stored(name, leaf))
        self.mark = b""

    def has_frozen(self, base: Mapping[str, Tensor]) -> bool:
        """Whether the frozen weights in the module are those of a base."""
        frozen = {n: leaf for n, leaf in base.items() if n.startswith(FROZEN)}
        return all(torch.equal(self._frozen(n, leaf.dtype), leaf) for n, leaf in frozen.items())

    def completed(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A client's stored base weights in the model's order, with the module's frozen ones if it stored none of them.

        Empty if the client stored nothing.
        """
        if not kept:
            return {}
        kind = next(iter(kept.values())).dtype
        short = {n.partition("/")[2]: n for n in kept}
        return {
            name: kept[name] if name in kept else self._frozen(name, kind)
            for name in (short.get(n, FROZEN + n) for n in self.bases)
        }

    def _frozen(self, name: str, kind: torch.dtype) -> Tensor:
        plain = name.removeprefix(FROZEN)
        return self.stored(plain, self.bases[plain].detach()).to(kind)

    def stored(self, name: str, leaf: Tensor) -> Tensor:
        """Convert a weight between its module's layout and (d, ...); the function is its own inverse."""
        shape = self.shapes.get(layer_of(name))
        return leaf.T if shape is not None and shape.transposed and name == parameter(layer_of(name)) else leaf

    def activate(self, model: Model, kind: Kind) -> Panel:
        """Switch to the adapters of a kind and let the model train them; factors have the values of the last job."""
        panel = self._panels.get(kind)
        if panel is None:
            panel = self._panels[kind] = self._make(kind)
        if panel.follower is not None:
            panel.follower.close()
            panel.follower = None
        for name, part in self.inner_layers():
            part.set_adapter(kind.name)
            for letter, factor in panel.factors[name].items():
                factor.requires_grad_(letter in kind.trained)
        self._bind(panel)
        self.panel = panel
        model.replace(self, panel.schema, panel.flat, panel.grad)
        return panel

    def silence(self) -> None:
        """Set B to zero, so that the adapters add nothing."""
        for panel in self._panels.values():
            for factors in panel.factors.values():
                factors[B].data.zero_()

    def inner_layers(self) -> list[tuple[str, LoraLayer]]:
        """The adapted layers with their names in the module."""
        found = {n.removeprefix("inner").removeprefix("."): m for n, m in self.named_modules()}
        return [(name, found[name]) for name in self.shapes]

    def _make(self, kind: Kind) -> Panel:
        if not any(kind.name == other.name for other in self._panels):
            self._inject(kind)
        wide = torch.float64 if next(iter(self.bases.values())).dtype == torch.float64 else torch.float32
        factors: dict[str, dict[str, nn.Parameter]] = {}
        leaves: list[tuple[str, Leaf]] = []
        for name, part in self.inner_layers():
            factors[name] = {A: part.lora_A[kind.name].weight, B: part.lora_B[kind.name].weight}
            for letter, factor in factors[name].items():
                if letter in kind.trained:
                    leaves.append((f"{name}.{letter}", Leaf(tuple(factor.shape), wide)))
                else:
                    factor.data = torch.zeros(factor.shape, dtype=wide)
        leaves += [(WHOLE + name, Leaf(tuple(self.bases[name].shape), wide)) for name in self.whole]
        schema = Schema(tuple(leaves))
        panel = Panel(kind, factors, schema, torch.zeros(schema.size, dtype=wide), torch.zeros(schema.size, dtype=wide))
        return panel

    def _inject(self, kind: Kind) -> None:
        """Inject the adapters of a kind by peft, with a rank and alpha for every layer.

        peft would use its common alpha for a layer without one, and the scaling would be wrong for another rank.
        """
        from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and servers need no adapters

        names = [f"inner.{name}" if name else "inner" for name in self.shapes]
        config = LoraConfig(
            r=kind.ranks[0],
            lora_alpha=kind.scalings[0] * kind.ranks[0],
            target_modules="|".join(map(re.escape, names)),
            rank_pattern={f"^{re.escape(n)}": r for n, r in zip(names, kind.ranks, strict=True)},
            alpha_pattern={f"^{re.escape(n)}": s * r for n, r, s in zip(names, kind.ranks, kind.scalings, strict=True)},
            lora_dropout=kind.dropout,
        )
        state = torch.get_rng_state()  # peft draws initial values, which are not used
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are several adapters, and that a Conv1D is stored transposed
            inject_adapter_in_model(config, self, kind.name)
        torch.set_rng_state(state)
        for _, part in self.inner_layers():
            if not part._forward_pre_hooks:
                # torch's fused transformer layers read weights without calling their parts, unless a part has a hook
                part.register_forward_pre_hook(_nothing)

    def _bind(self, panel: Panel) -> None:
        """Parameters and gradients as views of the panel's buffers."""
        for each in self.parameters():
            each.grad = None
        trained: dict[str, Tensor] = {
            f"{n}.{letter}": p for n, pair in panel.factors.items() for letter, p in pair.items()
        }
        trained.update({WHOLE + n: self.bases[n] for n in self.whole})
        at = 0
        for name, leaf in panel.schema.leaves:
            one = trained[name]
            one.data = panel.flat[at : at + leaf.size].view(leaf.shape)
            if isinstance(one, nn.Parameter):
                one.requires_grad_(True)
                one.grad = panel.grad[at : at + leaf.size].view(leaf.shape)
            at += leaf.size


def _nothing(module: nn.Module, given: object) -> None:
    """A hook that changes nothing."""
