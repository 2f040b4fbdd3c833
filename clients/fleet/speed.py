"""Statistics of a fleet from its columns: the clients' slowness in their declared units, and how many are offline."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.report import number_format

UNITS = {"sec_per_step": "s/step", "sec_per_sample": "s/sample", "flops_per_s": "s/GFLOP"}
"""The three ways to declare a speed, and the unit of `slowness` for each."""


def slowness(profile: Profile) -> float:
    """A client's slowness, larger is slower: seconds per step or per sample, or seconds per 10^9 FLOP."""
    if profile.flops_per_s is not None:
        return 1e9 / profile.flops_per_s
    return float(profile.sec_per_step or profile.sec_per_sample or 0.0)


def speed_unit(profile: Profile) -> str:
    """The unit of `slowness` for this client."""
    return next(unit for field, unit in UNITS.items() if getattr(profile, field) is not None)


def slownesses(clients: Clients) -> dict[str, np.ndarray]:
    """The slowness of all clients by declared unit, in the order of the clients, without building profiles."""
    found = {}
    for field, unit in UNITS.items():
        declared = numbers(clients, field)
        if len(declared := declared[np.isfinite(declared)]):
            found[unit] = 1e9 / declared if field == "flops_per_s" else declared
    return found


def numbers(clients: Clients, field: str) -> np.ndarray:
    """A field of all clients, float64 (n,); nan where a client does not declare it."""
    column = clients.column(field)
    if isinstance(column, list):
        return np.array([math.nan if value is None else value for value in column], dtype=np.float64)
    if isinstance(column, np.ndarray):
        return column.astype(np.float64)
    return np.full(len(clients), math.nan if column is None else column, dtype=np.float64)


def away(clients: Clients) -> int:
    """How many clients are not always online."""
    windows = clients.column("availability")
    return sum(map(bool, windows)) if isinstance(windows, list) else len(clients) * bool(windows)


def picked(clients: int, most: int) -> Sequence[int]:
    """All clients, or `most` of them at even distances, the first and the last included."""
    return [int(c) for c in np.unique(np.linspace(0, clients - 1, min(clients, most)).round())]


def rate(value: float) -> str:
    """Bytes per second as text, without "per second"."""
    return number_format.size(value) if math.isfinite(value) else "unlimited"


def per_second(value: float) -> str:
    """Bytes per second as text."""
    return f"{rate(value)}/s" if math.isfinite(value) else "unlimited"
