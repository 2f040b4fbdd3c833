"""Base class of the spaces of low-rank adapters: hyper-parameters, base weights, install on a device, evaluation.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685: y = W x + s B A x with W frozen, A
random and B zero at first; s = alpha / r, or alpha / sqrt(r) as Kalajdzievski, "A Rank Stabilization Scaling Factor for
Fine-Tuning with LoRA", arXiv:2312.03732.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedhet.engine.client_runner import CLIENT_STATE_PREFIX
from fedhet.engine.method import Misfit
from fedhet.model.flat_model import Model
from fedhet.numerics.rng import stream
from fedhet.numerics.tree import Leaf, Schema
from fedhet.types import Job, Tree
from strategies.spaces.lora import ledger
from strategies.spaces.lora.factors import Pair, added
from strategies.spaces.lora.host import Kind, LoraHost, Panel
from strategies.spaces.lora.layers import Shape, adaptable, chooses, matching, parameter
from strategies.spaces.lora.names import ADAPTED, FROZEN, STAMP, WHOLE, A, layer_of, under


@dataclass(frozen=True)
class AbstractLora(ABC):
    """LoRA: y = W x + s B A x with W frozen; subclasses define how adapters are initialised and combined.

    rank: the largest rank, and that of a job whose budget has none. A layer's rank is at most min(d, k), and at most
    the value in `rank_pattern` for the layers that its keys (names or regular expressions) match. alpha: the scaling s
    itself at every rank if `alpha_by_rank`; else s = alpha / r, or alpha / sqrt(r) with `rslora`. targets, exclude: the
    layers with adapters, see `layers.adaptable`. whole: parameters or buffers that are trained and sent in full, by
    name, end of name or regular expression; all other weights are frozen. dropout: probability before A, while
    training. seed: of initial values.

    Raises ValueError for values out of range, and Misfit for a budget whose rank is above `rank`.
    """

    rank: int = 8
    alpha: float = 2.0
    alpha_by_rank: bool = True
    rslora: bool = False
    targets: Sequence[str] = ("all-linear",)
    exclude: Sequence[str] = ()
    whole: Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("targets", "exclude", "whole"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha} must be positive")
        if self.rslora and self.alpha_by_rank:
            raise ValueError("rslora=True divides alpha by the root of the rank: set alpha_by_rank=False")
        if not self.targets:
            raise ValueError("targets=() leave no layer to adapt: name some, or all-linear")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        low = [f"{name}: {r}" for name, r in self.rank_pattern.items() if r < 1]
        if low:
            raise ValueError(f"rank_pattern has a rank below 1: {low[0]}")

    # For subclasses

    moves: ClassVar[bool] = True
    """False: only the parameters that are sent in full change; all other base weights are constant."""

    @abstractmethod
    def start(self, shapes: Mapping[str, Shape], kind: torch.dtype) -> dict[str, Tensor]:
        """Leaves of the first state in addition to the base weights."""

    @abstractmethod
    def adapter_products(self, state: Mapping[str, Tensor]) -> dict[str, Pair]:
        """The products that are added to the base weights in the evaluated model, by layer."""

    @abstractmethod
    def adapter_payload(self, state: Mapping[str, Tensor], job: Job) -> dict[str, Tensor]:
        """Leaves of a job's payload in addition to the base weights."""

    @abstractmethod
    def trained(self, version: int) -> tuple[str, ...]:
        """Which of A and B a job of this version trains and sends."""

    @abstractmethod
    def fill_adapters(self, model: Model, panel: Panel, payload: Mapping[str, Tensor], job: Job) -> None:
        """Fill the adapters of a device before local training."""

    @abstractmethod
    def adapter_update(self, model: Model, panel: Panel) -> dict[str, Tensor]:
        """The factors of an update, in the order of `expects`."""

    # Server

    def begin(self, model: Model) -> Tree:
        host = self._host(model)
        wide = torch.float64 if model.flat.dtype == torch.float64 else torch.float32
        base = {}
        for name, live in host.bases.items():
            adapted = name in map(parameter, host.shapes)
            prefix = ADAPTED if adapted else WHOLE if name in host.whole else FROZEN
            base[prefix + name] = host.stored(name, live).detach().to(wide).clone()
        state = {**base, **ledger.first(self._settings, base)}
        return {**state, **self.start(host.shapes, wide)}

    def offer(self, state: Tree, job: Job) -> Tree:
        self.rank_of(job)
        held = dict(state.items())
        return {**ledger.deliver(held, job.held, moves=self.moves), **self.adapter_payload(held, job)}

    def expects(self, state: Tree, job: Job) -> Schema:
        held = dict(state.items())
        kind = held[STAMP].dtype
        leaves = []
        for name, shape in shapes_of(held).items():
            r = self.rank_at(name, shape, self.rank_of(job))
            for letter in self.trained(job.version):
                leaves.append((f"{name}.{letter}", Leaf((r, shape.k) if letter == A else (shape.d, r), kind)))
        leaves += [(n, Leaf(tuple(leaf.shape), kind)) for n, leaf in held.items() if n.startswith(WHOLE)]
        return Schema(tuple(leaves))

    def split_optimized(self, delta: Tree) -> tuple[Tree, Tree]:
        return delta, {}

    def restore(self, model: Model, state: Tree) -> None:
        held = dict(state.items())
        base = under(held, ADAPTED, FROZEN, WHOLE)
        for layer, pair in self.adapter_products(held).items():
            base[parameter(layer)] = added(base[parameter(layer)], pair)
        host = self._host(model)
        host.load(base)
        host.silence()

    # Device

    def install(self, model: Model, payload: Tree, job: Job) -> None:
        sent = dict(payload.items())
        if ledger.settings_of(sent) != tuple(torch.tensor(self._settings, dtype=sent[STAMP].dtype).tolist()):
            raise ValueError(f"alpha: the server scales by {ledger.settings_of(sent)}, this device by {self._settings}")
        host = self._host(model)
        mark = ledger.hash_of(sent)
        kept = ledger.base_of(under(model.extras, CLIENT_STATE_PREFIX))
        base = host.held if mark == host.mark else ledger.receive(host.completed(kept), sent)
        # frozen weights that equal those of the device's own model are not stored per client
        spare = not any(n.startswith(FROZEN) for n in kept) and host.has_frozen(base)
        rank = self.rank_of(job)
        ranks = [self.rank_at(name, shape, rank) for name, shape in host.shapes.items()]
        kind = Kind(tuple(ranks), tuple(map(self.scaling, ranks)), self.dropout, self.trained(job.version))
        panel = host.activate(model, kind)
        host.load(under(base, ADAPTED, FROZEN, WHOLE), base, mark)
        model.extras.update(
            {CLIENT_STATE_PREFIX + n: leaf for n, leaf in base.items() if not (spare and n.startswith(FROZEN))}
        )
        self.fill_adapters(model, panel, sent, job)

    def extract(self, model: Model, payload: Tree) -> Tree:
        host = hosted(model)
        if host.panel is None:
            raise ValueError("the model has no adapters yet: install a payload before extracting an update")
        whole = {WHOLE + n: host.bases[n].detach() - host.held[WHOLE + n] for n in host.whole}
        return {**self.adapter_update(model, host.panel), **whole}

    # Both

    def scaling(self, rank: int) -> float:
        """The scaling s of a layer with this rank."""
        if self.alpha_by_rank:
            return self.alpha
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)

    def rank_of(self, job: Job) -> int:
        """A job's rank. Raises Misfit if its budget is above the space's."""
        rank = job.budget.rank
        if rank > self.rank:
            raise Misfit(
                f"the budget gives client {job.client} rank {rank}, above space.rank={self.rank}: set "
                f"space.rank={rank}, or let the budget give less (budget.max_rank, budget.rank, budget.ranks)"
            )
        return rank or self.rank

    def rank_at(self, layer: str, shape: Shape, rank: int) -> int:
        """A layer's rank in a job of rank `rank`."""
        caps = [cap for name, cap in self.rank_pattern.items() if chooses(name, layer)]
        return min(rank, shape.d, shape.k, *caps)

    def draw(self, shapes: Mapping[str, tuple[int, int]], *key: int) -> dict[str, Tensor]:
        """Initial A by layer, (r, k) float32, uniform in +-1 / sqrt(k) as in peft.

        The first rows of a larger rank are those of a smaller one.
        """
        drawn = {}
        for at, (name, (r, k)) in enumerate(shapes.items()):
            values = stream(self.seed, "lora", at, *key).uniform(-1.0, 1.0, (r, k)) / math.sqrt(k)
            drawn[name] = torch.from_numpy(values.astype(np.float32))
        return drawn

    @property
    def _settings(self) -> tuple[float, ...]:
        return self.alpha, float(self.alpha_by_rank), float(self.rslora)

    def _host(self, model: Model) -> LoraHost:
        """The model's host. It does not change the model before adapters are activated."""
        if isinstance(model.module, LoraHost):
            return model.module
        shapes = adaptable(model.module, self.targets, self.exclude)
        absent = [n for n in map(parameter, shapes) if n not in model.schema]
        if absent:
            raise ValueError(f"the weight {absent[0]} is frozen in the model: layers with adapters must be part of it")
        weights = set(map(parameter, shapes))
        return LoraHost(model, shapes, matching([n for n in model.schema if n not in weights], self.whole))


def hosted(model: Model) -> LoraHost:
    """The host of a model whose adapters were activated."""
    if not isinstance(model.module, LoraHost):
        raise ValueError("the model has no adapters: install a payload before extracting an update")
    return model.module


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The adapted layers of a state, in order."""
    weights = {layer_of(n): leaf for n, leaf in state.items() if n.startswith(ADAPTED)}
    return {n: Shape(w.shape[0], w.numel() // max(1, w.shape[0])) for n, w in weights.items()}
