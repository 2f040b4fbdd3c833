"""Staleness discounts: an update that is u versions old is scaled by st(u).

    constant      1
    polynomial    (1 + u)^(-a)
    hinge         1 if u <= b, else 1 / (a (u - b) + 1)
    exponential   2^(-u / h)
    sigmoid       (1 + exp(-a b)) / (1 + exp(a (u - b)))     so that st(0) = 1
    inverse       B / (B + u)

Constant, polynomial and hinge: Xie et al., "Asynchronous Federated Optimization", arXiv:1903.03934.
Polynomial with a = 1/2 in the buffer: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation",
arXiv:2106.06639. u is counted in versions at the time of combination. The factor multiplies `Update.scale`, which no
rule normalises; every form has st(0) = 1, is positive and does not increase with u.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

from fedhet.bases import AbstractTransform
from fedhet.protocols import View
from fedhet.types import Memory, Update


@dataclass(frozen=True)
class AbstractDiscount(AbstractTransform, ABC):
    """Multiplies an arriving update's scale by a function of its staleness."""

    @abstractmethod
    def factor(self, staleness: int) -> float:
        """st(u) in (0, 1] for u >= 0 versions."""

    @final
    def arrive(self, update: Update, view: View, memory: Memory) -> Update:
        return replace(update, scale=update.scale * self.factor(view.version - update.job.version))


@dataclass(frozen=True)
class Constant(AbstractDiscount):
    """No discount: st(u) = 1."""

    def factor(self, staleness: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Polynomial(AbstractDiscount):
    """Polynomial discount: st(u) = (1 + u)^(-a), with a >= 0."""

    a: float = 0.5

    def __post_init__(self) -> None:
        _not_negative("a", self.a)

    def factor(self, staleness: int) -> float:
        return float((1.0 + staleness) ** -self.a)


@dataclass(frozen=True)
class Hinge(AbstractDiscount):
    """Hinge discount: st(u) = 1 up to b versions, then 1 / (a (u - b) + 1)."""

    a: float = 10.0
    b: float = 4.0

    def __post_init__(self) -> None:
        _not_negative("a", self.a)
        _not_negative("b", self.b)

    def factor(self, staleness: int) -> float:
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)


@dataclass(frozen=True)
class Exponential(AbstractDiscount):
    """Exponential discount: st(u) = 2^(-u / half_life), with half_life in versions."""

    half_life: float = 20.0

    def __post_init__(self) -> None:
        _positive("half_life", self.half_life)

    def factor(self, staleness: int) -> float:
        return float(max(2.0 ** (-staleness / self.half_life), math.ulp(0.0)))


@dataclass(frozen=True)
class Sigmoid(AbstractDiscount):
    """Sigmoid discount: a smooth step around b versions with slope a, st(0) = 1."""

    a: float = 0.25
    b: float = 10.0

    def __post_init__(self) -> None:
        _not_negative("a", self.a)
        _not_negative("b", self.b)
        if self.a * self.b > 700.0:
            raise ValueError(f"a={self.a}, b={self.b}: a * b must stay below 700; use the hinge for a sharper step")

    def factor(self, staleness: int) -> float:
        exponent = min(self.a * (staleness - self.b), 700.0)
        return (1.0 + math.exp(-self.a * self.b)) / (1.0 + math.exp(exponent))


@dataclass(frozen=True)
class Inverse(AbstractDiscount):
    """Inverse discount: st(u) = bound / (bound + u), with bound in versions."""

    bound: float = 10.0

    def __post_init__(self) -> None:
        _positive("bound", self.bound)

    def factor(self, staleness: int) -> float:
        return self.bound / (self.bound + staleness)


def _not_negative(name: str, value: float) -> None:
    if not (value >= 0.0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} would let staleness amplify updates; use a finite number of at least 0")


def _positive(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} must be a finite number above 0, such as 10")
