"""More rows of an adapter than a client may send, of which it trains and sends those that matter, and tries others.

Zhan, Wu and Zhang, "Efficient and Scalable Fine-Tune of Language Models for Genome Understanding" (Lingo),
arXiv:2402.08075: the rows of an adapter are pruned by how much the loss depends on them, and now and then one is kept
or dropped against that order. Here a job of rank r holds `pool` * r rows of A and columns of B, r of them kept:

    I_j      |b_j . g(b_j)| + mean |a_j * g(a_j)| + mean |b_j * g(b_j)|, a running mean over the steps j was kept
    kept     the r - q of the greatest I, and q = round(explore * r) of the others, drawn with probability ~ I + mean I

chosen anew after every `every` steps, without drawing in the last fifth of them. The first term is what AdaLoRA's
singular value (Zhang et al., arXiv:2303.10512) would get: it is part of b_j here, as only the product counts. Lingo
exceeds its rank by chance and brings rows back as zeros; here exactly r rows are kept at any time, a dropped one is
set aside as it is and comes back as it was, and it neither adds to the outputs nor moves meanwhile.

What goes to the server is an adapter of rank r like any other, so sums stay exact whatever rows each client kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from strategies.spaces.lora.host import Panel
from strategies.spaces.lora.names import A, B

SMOOTH = 0.85
"""Of the running mean of I: AdaLoRA's."""

SETTLED = 0.2
"""The share of a job's steps, its last ones, in which no row is drawn."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one job samples: its steps, see above; `draws(layer, step)` gives a stream of random numbers."""

    steps: int
    every: int
    explore: float
    draws: Callable[[int, int], np.random.Generator]


class UpdateMatrix(NamedTuple):
    """One layer: its live factors, which rows are kept, and of each row I, over how many steps, and what was set
    aside when it was dropped."""

    a: Tensor
    b: Tensor
    kept: Tensor
    weight: Tensor
    steps: Tensor
    aside_a: Tensor
    aside_b: Tensor


class Sampler:
    """Follows one job's training: `step` before every forward pass, `close` after the last step."""

    def __init__(self, panel: Panel, ranks: Mapping[str, int], plan: Plan) -> None:
        """The first rows of each layer are kept at first, as many as `ranks` says."""
        self.plan, self.layers = plan, {name: _rows(panel, name, rank) for name, rank in ranks.items()}
        self._done = 0
        self._now = {name: torch.zeros_like(rows.weight) for name, rows in self.layers.items()}
        self._hooks: list[RemovableHandle] = [
            factor.register_hook(partial(self._graded, name, letter))  # type: ignore[no-untyped-call]
            for name in self.layers
            for letter, factor in panel.factors[name].items()
        ]

    def kept(self, name: str) -> Tensor:
        """The numbers of a layer's kept rows, ascending."""
        return self.layers[name].kept.nonzero()[:, 0]

    @torch.no_grad()
    def step(self) -> None:
        """Take in the last step's gradients, choose anew if it is time, and hold dropped rows where they were."""
        if self._done:
            self._weigh()
        if self._done and self._done % self.plan.every == 0:
            for at, rows in enumerate(self.layers.values()):
                self._choose(rows, self.plan.draws(at, self._done))
        self._done += 1
        self._hold()

    @torch.no_grad()
    def close(self) -> None:
        """The end of the job: only kept rows add anything. Calling it again changes nothing."""
        self._hold()
        for hook in self._hooks:
            hook.remove()

    def _graded(self, name: str, letter: str, gradient: Tensor) -> Tensor | None:
        """A factor's gradient as it comes: note what I needs, and let dropped columns of B have none. Dropped rows of A
        have none anyway, as their columns of B are zero."""
        rows = self.layers[name]
        if letter == A:
            self._now[name] += (rows.a * gradient.flatten(1)).abs().mean(1)
            return None
        felt = rows.b * gradient.flatten(1)
        self._now[name] += felt.sum(0).abs() + felt.abs().mean(0)
        return gradient * rows.kept.view(1, -1, *[1] * (gradient.dim() - 2))

    def _weigh(self) -> None:
        for name, rows in self.layers.items():
            now = self._now[name]
            rows.weight[rows.kept] = torch.lerp(now, rows.weight, SMOOTH)[rows.kept]
            rows.steps[rows.kept] += 1
            now.zero_()

    def _choose(self, rows: UpdateMatrix, draws: np.random.Generator) -> None:
        count = int(rows.kept.sum())
        tried = min(round(self.plan.explore * count), len(rows.kept) - count)
        if self._done >= (1 - SETTLED) * self.plan.steps:
            tried = 0
        self._swap(rows, chosen(_score(rows), count, tried, draws))

    def _swap(self, rows: UpdateMatrix, kept: Tensor) -> None:
        """Set aside what is no longer kept and bring back what is."""
        dropped, back = rows.kept & ~kept, kept & ~rows.kept
        rows.aside_a[dropped], rows.aside_b[:, dropped] = rows.a[dropped], rows.b[:, dropped]
        rows.a[back], rows.b[:, back] = rows.aside_a[back], rows.aside_b[:, back]
        rows.kept.copy_(kept)

    def _hold(self) -> None:
        """An optimizer with a memory moves rows that have no gradient."""
        for rows in self.layers.values():
            out = ~rows.kept
            rows.a[out] = rows.aside_a[out]
            rows.b[:, out] = 0.0


def chosen(score: Tensor, count: int, tried: int, draws: np.random.Generator) -> Tensor:
    """Which `count` rows are kept: all but `tried` of them by their score, earlier ones first where it is equal."""
    order = torch.argsort(score, descending=True, stable=True)
    kept = torch.zeros(len(score), dtype=torch.bool)
    kept[order[: count - tried]] = True
    if tried:
        rest = order[count - tried :]
        odds = (score[rest] + score.mean()).double().numpy() if bool(score.any()) else np.ones(len(rest))
        kept[rest[torch.from_numpy(draws.choice(len(rest), tried, replace=False, p=odds / odds.sum()))]] = True
    return kept


def _score(rows: UpdateMatrix) -> Tensor:
    """I of every row, zero where it was never kept. A running mean that began at zero is too small by SMOOTH^n."""
    return rows.weight / (1 - SMOOTH ** rows.steps.clamp(min=1.0))


def _rows(panel: Panel, name: str, rank: int) -> UpdateMatrix:
    """A layer whose first rows are kept, the others as they lie there, with B zero."""
    a, b = (panel.factors[name][letter].data.flatten(1) for letter in (A, B))
    kept = torch.arange(len(a)) < rank
    return UpdateMatrix(a, b, kept, a.new_zeros(len(a)), a.new_zeros(len(a)), a.clone(), b.clone())
