"""Every work under conf/ passes the checks of a work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedhet.testing.conformance import CHECKS

AXES, KIND = ("work",), "work"


def test_work(option: str, check: str, build: Callable[[str], Any]) -> None:
    CHECKS[KIND][check](build(option))
