"""Partial implementations. Every class here is abstract and named Abstract*; final classes live in strategies/."""

from fedhet.bases.layer import AbstractLayer
from fedhet.bases.rule import AbstractCoordinateRule, AbstractLinearRule
from fedhet.bases.space import AbstractDense

__all__ = ["AbstractCoordinateRule", "AbstractDense", "AbstractLayer", "AbstractLinearRule"]
