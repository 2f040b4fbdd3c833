"""Row sampling: a pool of more adapter rows than a client sends; the most important ones are trained and sent.

Zhan, Wu and Zhang, "Efficient and Scalable Fine-Tune of Language Models for Genome Understanding" (Lingo),
arXiv:2402.08075: the rows of an adapter are pruned by their importance for the loss, and some are retained or dropped
at random. Here a job of rank r has `pool` * r rows of A and columns of B, and r of them are active:

    I_j      |b_j . g(b_j)| + mean |a_j * g(a_j)| + mean |b_j * g(b_j)|, a running mean over the steps j was active
    active   the r - q of the greatest I, and q = round(explore * r) of the others, drawn with probability ~ I + mean I

selected again after every `every` steps, without random ones in the last fifth of them. The first term is that of
AdaLoRA's singular value (Zhang et al., arXiv:2303.10512), which is part of b_j here, as only the product matters. Lingo
exceeds its rank by chance and brings rows back as zeros. Here exactly r rows are active at any time; a dropped row is
stored unchanged and restored when it is selected again, and has no effect on outputs meanwhile.

The update is an adapter of rank r, so sums are exact whatever rows each client selects.
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
"""Decay of the running mean of I, as in AdaLoRA."""

SETTLED = 0.2
"""The share of a job's steps, its last ones, without random rows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sampling parameters of one job, see the module; `draws(layer, step)` returns a random stream."""

    steps: int
    every: int
    explore: float
    draws: Callable[[int, int], np.random.Generator]


class AdapterRows(NamedTuple):
    """One layer: its factors (views), a mask of the active rows, and per row I, its number of steps, and a copy from
    when it was last dropped."""

    a: Tensor
    b: Tensor
    active: Tensor
    weight: Tensor
    steps: Tensor
    aside_a: Tensor
    aside_b: Tensor


class Sampler:
    """The row sampling of one job: `step` before every forward pass, `close` after the last step."""

    def __init__(self, panel: Panel, ranks: Mapping[str, int], plan: Plan) -> None:
        """At first the first rows of each layer are active, as many as `ranks` gives."""
        self.plan, self.layers = plan, {name: _rows(panel, name, rank) for name, rank in ranks.items()}
        self._done = 0
        self._now = {name: torch.zeros_like(rows.weight) for name, rows in self.layers.items()}
        self._hooks: list[RemovableHandle] = [
            factor.register_hook(partial(self._graded, name, letter))  # type: ignore[no-untyped-call]
            for name in self.layers
            for letter, factor in panel.factors[name].items()
        ]

    def active(self, name: str) -> Tensor:
        """The indices of a layer's active rows, ascending."""
        return self.layers[name].active.nonzero()[:, 0]

    @torch.no_grad()
    def step(self) -> None:
        """Update I by the last step's gradients, select rows if it is time, and restore dropped rows."""
        if self._done:
            self._weigh()
        if self._done and self._done % self.plan.every == 0:
            for at, rows in enumerate(self.layers.values()):
                self._choose(rows, self.plan.draws(at, self._done))
        self._done += 1
        self._hold()

    @torch.no_grad()
    def close(self) -> None:
        """End the job: only active rows remain in the product. Calling it again changes nothing."""
        self._hold()
        for hook in self._hooks:
            hook.remove()

    def _graded(self, name: str, letter: str, gradient: Tensor) -> Tensor | None:
        """Record a factor's gradient for I, and set that of dropped columns of B to zero.

        Dropped rows of A have none anyway, as their columns of B are zero.
        """
        rows = self.layers[name]
        if letter == A:
            self._now[name] += (rows.a * gradient.flatten(1)).abs().mean(1)
            return None
        felt = rows.b * gradient.flatten(1)
        self._now[name] += felt.sum(0).abs() + felt.abs().mean(0)
        return gradient * rows.active.view(1, -1, *[1] * (gradient.dim() - 2))

    def _weigh(self) -> None:
        for name, rows in self.layers.items():
            now = self._now[name]
            rows.weight[rows.active] = torch.lerp(now, rows.weight, SMOOTH)[rows.active]
            rows.steps[rows.active] += 1
            now.zero_()

    def _choose(self, rows: AdapterRows, draws: np.random.Generator) -> None:
        count = int(rows.active.sum())
        tried = min(round(self.plan.explore * count), len(rows.active) - count)
        if self._done >= (1 - SETTLED) * self.plan.steps:
            tried = 0
        self._swap(rows, chosen(_score(rows), count, tried, draws))

    def _swap(self, rows: AdapterRows, active: Tensor) -> None:
        """Store the rows that are no longer active and restore those that become active."""
        dropped, back = rows.active & ~active, active & ~rows.active
        rows.aside_a[dropped], rows.aside_b[:, dropped] = rows.a[dropped], rows.b[:, dropped]
        rows.a[back], rows.b[:, back] = rows.aside_a[back], rows.aside_b[:, back]
        rows.active.copy_(active)

    def _hold(self) -> None:
        """Reset dropped rows, which an optimizer with momentum changes without a gradient."""
        for rows in self.layers.values():
            out = ~rows.active
            rows.a[out] = rows.aside_a[out]
            rows.b[:, out] = 0.0


def chosen(score: Tensor, count: int, tried: int, draws: np.random.Generator) -> Tensor:
    """The `count` active rows: all but `tried` of them by their score, ties to the lower index."""
    order = torch.argsort(score, descending=True, stable=True)
    active = torch.zeros(len(score), dtype=torch.bool)
    active[order[: count - tried]] = True
    if tried:
        rest = order[count - tried :]
        odds = (score[rest] + score.mean()).double().numpy() if bool(score.any()) else np.ones(len(rest))
        active[rest[torch.from_numpy(draws.choice(len(rest), tried, replace=False, p=odds / odds.sum()))]] = True
    return active


def _score(rows: AdapterRows) -> Tensor:
    """I of every row, zero if it was never active; corrected for the running mean's start at zero, by 1 - SMOOTH^n."""
    return rows.weight / (1 - SMOOTH ** rows.steps.clamp(min=1.0))


def _rows(panel: Panel, name: str, rank: int) -> AdapterRows:
    """A layer whose first rows are active; the others have their initial values, with B zero."""
    a, b = (panel.factors[name][letter].data.flatten(1) for letter in (A, B))
    active = torch.arange(len(a)) < rank
    return AdapterRows(a, b, active, a.new_zeros(len(a)), a.new_zeros(len(a)), a.clone(), b.clone())
