"""Every transform under conf/ passes the checks of a transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedhet.engine.method import TRANSFORM_SLOTS
from fedhet.testing.conformance import CHECKS

AXES, KIND = TRANSFORM_SLOTS, "transform"

NEUTRAL = {"staleness/constant": "leaves the age out", "optimizer/sgd": "its lr is 1"}


def test_transform(option: str, check: str, build: Callable[[str], Any]) -> None:
    transforms = build(option)
    assert transforms
    if check == "effect" and option in NEUTRAL:
        with pytest.raises(AssertionError, match="it changes no step"):
            CHECKS[KIND][check](transforms)
        return
    CHECKS[KIND][check](transforms)
