"""Benchmarks of every configured combination rule, compared with reading its inputs once; one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from fedhet.bench.aggregation import READ, updates, with_threads
from fedhet.bench.turns import Cost
from fedhet.config import composition
from fedhet.errors import ConfigError
from fedhet.numerics import tree
from fedhet.numerics.rng import stream
from fedhet.provenance import source_tree
from fedhet.types import Budget, Job, Tree, Update


class Dense:
    """The geometry of plain vectors."""

    gram = staticmethod(tree.gram)

    @staticmethod
    def combine(deltas: Sequence[Tree], coefficients: Sequence[float], scales: Sequence[float] | None = None) -> Tree:
        return tree.weighted_sum(deltas, tree.scaled(coefficients, scales))


class View:
    """The view that rules get in addition to the updates."""

    roster = SimpleNamespace(total_examples=1_000_000)

    @staticmethod
    def fednova_norm(job: Job) -> float:
        return float(job.budget.steps)

    @staticmethod
    def rng(purpose: str) -> np.random.Generator:
        return stream(0, purpose)


def configured(wrong: int) -> dict[str, Any]:
    """The options of the rule axis that need no inner rule, with `f=wrong` Byzantine updates where they have `f`."""
    found = {}
    for path in sorted((source_tree.conf() / "rule").glob("*.yaml")):
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
        if "defaults" not in node:  # not a wrapper around another rule
            found[path.stem] = composition.instantiate({**node, **({"f": wrong} if "f" in node else {})}, "rule")
    return found


def costs(n: int, d: int, repeats: int) -> tuple[dict[str, Cost], dict[str, str]]:
    """Cost by rule, including one pass of reading, and the error of each rule that refuses these updates."""
    trees = updates(n, d)
    given = [Update(Job(i, i, 0, 0, Budget(), 0.0), one, 1.0) for i, one in enumerate(trees)]
    systems: dict[str, Callable[[], Any]] = {READ: lambda: [one.flat.sum() for one in trees]}
    refused: dict[str, str] = {}
    for name, rule in configured(n // 5).items():
        try:
            rule(given, Dense, View)
        except (ValueError, ConfigError) as error:
            refused[name] = str(error)
        else:
            systems[name] = lambda rule=rule: rule(given, Dense, View)  # type: ignore[misc]
    return with_threads(1, systems, repeats), refused
