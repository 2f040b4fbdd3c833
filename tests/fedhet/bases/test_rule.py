"""The errors of the rules' base classes for a rule with a malformed result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fedhet.bases import AbstractLinearRule
from fedhet.testing.quadratic import FakeView, QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Update
from strategies.spaces.full import Full


@dataclass(frozen=True)
class Longer(AbstractLinearRule):
    """Coefficients of `shape` more than there are updates."""

    more: int = 3
    value: float = 0.1

    def coefficients(self, gram, weights, updates, view):
        return np.full(len(weights) + self.more, self.value)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Longer(), r"Longer: coefficients has shape \(8,\), needs \(5,\)"),
        (Longer(more=-1), r"Longer: coefficients has shape \(4,\), needs \(5,\)"),
        (Longer(more=0, value=float("nan")), "Longer: coefficients .* are not finite"),
    ],
)
def test_coefficients_of_another_form_are_refused_and_the_rule_is_named(rule, told):
    updates = [Update(Job(i, i, 0, 0, Budget(1), 0.0), {"x": torch.ones(2)}, 1.0) for i in range(5)]
    view = FakeView(equal_clients(QuadraticWorld([1.0] * 5, np.zeros(5))), Full())
    with pytest.raises(ValueError, match=told):
        rule(updates, view.space, view)
