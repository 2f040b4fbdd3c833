"""Every space under conf/ passes the checks of a space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedhet.testing.conformance import CHECKS

AXES, KIND = ("space",), "space"

CUT = {"florist": "what little a combination's smallest singular values hold is cut"}
WITHOUT = {
    "merge": CUT,
    "linear": {**CUT, "padded_lora": "products of averages are no averages of products"},
    "gram": {**CUT, **dict.fromkeys(("padded_lora", "ffa", "rolora"), "distances are those of factors")},
}


def test_space(option: str, check: str, build: Callable[[str], Any]) -> None:
    CHECKS[KIND][check](build(option))
