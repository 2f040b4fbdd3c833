"""Every option of an axis, found through its configuration file, so that new options are tested without registration.

A test module names its axes in `AXES` and the kind of plug-in in `KIND`; tests that take `option` run once for each of
the options, tests that take `check` once for each check of the kind (`fedhet.testing.conformance`), and `build` makes
the plug-in of an option as a run would. An option that only works beside others (`${schedule.tiers}`) is composed with
the first published method that chooses it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedhet.config import composition
from fedhet.engine.method import TRANSFORM_SLOTS
from fedhet.errors import ConfigError
from fedhet.provenance import source_tree
from fedhet.testing.conformance import CHECKS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "option" in metafunc.fixturenames:
        axes = metafunc.module.AXES
        found = [f"{axis}/{name}" for axis in axes for name in composition.options()[axis] if name != "none"]
        metafunc.parametrize("option", found)
    if "check" in metafunc.fixturenames:
        metafunc.parametrize("check", CHECKS[metafunc.module.KIND])


def method_with(option: str) -> str:
    """The first published method that chooses an option, or fedavg."""
    axis, _, name = option.partition("/")
    for path in sorted((source_tree.conf() / "strategy").glob("*.yaml")):
        chosen = OmegaConf.load(path).get("defaults", [])
        if {f"override /{axis}": name} in chosen:
            return path.stem
    return "fedavg"


@cache
def node(option: str) -> Any:
    """The resolved configuration of an option."""
    axis, _, name = option.partition("/")
    chosen = composition.compose([f"{axis}={name}"])
    try:
        return composition.resolved(chosen)[axis]
    except ConfigError:  # it reads an option that is not chosen here
        return composition.resolved(composition.compose([f"strategy={method_with(option)}", f"{axis}={name}"]))[axis]


@pytest.fixture(scope="session")
def build() -> Callable[[str], Any]:
    """build("rule/krum") is the plug-in; of the layers' axes, a tuple of layers."""

    def make(option: str) -> Any:
        axis = option.partition("/")[0]
        return (
            composition.transforms(node(option), axis)
            if axis in TRANSFORM_SLOTS
            else composition.instantiate(node(option), axis)
        )

    return make


@pytest.fixture(autouse=True)
def left_out(request: pytest.FixtureRequest) -> None:
    """Skips checks that an option does not pass by what it is: the module's `WITHOUT`, check to option to reason."""
    without = getattr(request.module, "WITHOUT", {})
    if "check" in request.fixturenames and "option" in request.fixturenames:
        name = str(request.getfixturevalue("option")).partition("/")[2]
        reasons = without.get(request.getfixturevalue("check"), {})
        if name in reasons:
            pytest.skip(f"{name}: {reasons[name]}")
