"""Every schedule under conf/ passes the checks of a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedhet.testing.conformance import CHECKS

AXES, KIND = ("schedule",), "schedule"


def test_schedule(option: str, check: str, build: Callable[[str], Any]) -> None:
    CHECKS[KIND][check](build(option))
