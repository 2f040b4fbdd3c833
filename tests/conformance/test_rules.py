"""Every rule under conf/ passes the checks of a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedhet.testing.conformance import CHECKS

AXES, KIND = ("rule",), "rule"

OF_ALL = {name: "divides by the samples of all clients" for name in ("mean_population", "fednova_population")}
ABSOLUTE = {"clipping": "its radius is a length", "colluding": "an attack may send a vector of fixed length"}
WITHOUT = {
    "order": {"bucketing": "buckets are drawn over positions; the server puts updates in order first"},
    "agreement": {**OF_ALL, "colluding": "attackers replace their updates"},
    "length": ABSOLUTE,
    "common scale": ABSOLUTE,
    "weights": OF_ALL,
}


def test_rule(option: str, check: str, build: Callable[[str], Any]) -> None:
    CHECKS[KIND][check](build(option))
