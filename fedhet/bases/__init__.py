"""Partial implementations. Every class here is abstract and named Abstract*; final classes live in strategies/."""

from fedhet.bases.rule import AbstractCoordinateRule, AbstractLinearRule
from fedhet.bases.space import AbstractDense
from fedhet.bases.transform import AbstractLayer

__all__ = ["AbstractCoordinateRule", "AbstractDense", "AbstractLayer", "AbstractLinearRule"]
