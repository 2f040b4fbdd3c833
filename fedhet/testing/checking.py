"""Helpers of the checks: running them, assertion messages, and fedhet's own options to combine with a plug-in."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from fedhet.config import composition

Check: TypeAlias = Callable[[Any], None]
"""A function of a plug-in that raises AssertionError, with the value in its message, if a requirement is not met."""


def run_checks(axis: str, plugin: Any, checks: Mapping[str, Check], without: Mapping[str, str]) -> None:
    """Run every check except those in `without` (name to reason). An exception of the plug-in fails the check.

    Raises AssertionError with the plug-in and every failed check, and ValueError for a name in `without` that is not a
    check.
    """
    for name in without:
        if name not in checks:
            near = difflib.get_close_matches(name, checks, 1)
            raise ValueError(
                f"without: there is no check {name!r} of a {axis}{f' (nearest: {near[0]})' if near else ''}"
            )
    failed = []
    for name, check in checks.items():
        if name in without:
            continue
        try:
            check(plugin)
        except AssertionError as error:
            failed.append(f"{name}: {' '.join(str(error).split())}")
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    if failed:
        count = f"{len(failed)} of {len(checks)} checks of a {axis}"
        raise AssertionError("\n  ".join([f"{plugin!r} fails {count}:", *failed]))


def ensure(holds: bool, message: str) -> None:
    """Raise AssertionError with this message unless the condition holds, also under `python -O`."""
    if not holds:
        raise AssertionError(message)


def close(found: Any, expected: Any, what: str, rtol: float = 1e-7, atol: float = 0.0) -> None:
    """Raise AssertionError with both values unless they are equal within the tolerances."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape == expected.shape and np.allclose(found, expected, rtol=rtol, atol=atol):
        return
    raise AssertionError(f"{what}: {_told(found)}, needs {_told(expected)}")


def _told(value: np.ndarray) -> str:
    return np.array2string(value, precision=6, threshold=8, edgeitems=3, separator=", ")


@cache
def option(axis: str, name: str) -> Any:
    """One of fedhet's own options, built from its configuration file; it must have no state."""
    return composition.instantiate(composition.resolved(composition.compose([f"{axis}={name}"]))[axis], axis)
