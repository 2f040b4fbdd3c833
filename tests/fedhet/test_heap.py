"""Freed memory that stays: blocks that come and go at one size cost fresh pages once."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from fedhet import heap


def faults(times: int) -> int:
    """Pages touched for the first time while a block of 20 MB comes and goes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(5_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_blocks_that_come_and_go_cost_fresh_pages_once() -> None:
    if not heap.keep():
        assert platform.libc_ver()[0] != "glibc"
        pytest.skip("not the GNU C library")
    faults(1)
    assert faults(5) < 20_000_000 // resource.getpagesize()
