"""Tests of plug-ins: the checks of every axis (`conformance`), and quadratic clients with a known optimum.
Tests themselves are under tests/."""

from typing import Any

from fedhet import former_names


def __getattr__(name: str) -> Any:
    return former_names.forwarded(__name__, name)
