"""Partial implementations. Every class here is abstract and named Abstract*; final classes live in strategies/."""

from typing import Any

from fedhet import former_names
from fedhet.bases.rule import AbstractCoordinateRule, AbstractLinearRule
from fedhet.bases.space import AbstractDense
from fedhet.bases.transform import AbstractTransform

__all__ = ["AbstractCoordinateRule", "AbstractDense", "AbstractLinearRule", "AbstractTransform"]


def __getattr__(name: str) -> Any:
    return former_names.renamed(__name__, name)
