"""Freed memory stays with the process: repeated allocations cause page faults once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from fedhet.provenance import source_tree

SIZE, COUNT = 20_000_000, 4

CODE = f"""
import resource, sys
from fedhet import heap
if sys.argv[1] == "keep" and not heap.keep():
    sys.exit("not kept")
def come_and_go():
    held = [bytearray({SIZE}) for _ in range({COUNT})]
def touched():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
come_and_go(); come_and_go()
before = touched()
for _ in range(5): come_and_go()
print((touched() - before) * resource.getpagesize() / {SIZE * COUNT})
"""


def rounds_of_fresh_pages(how: str) -> float:
    """Of five in which blocks come and go, in a process of its own; how many ask the kernel for their pages anew."""
    given = {**os.environ, "PYTHONPATH": str(source_tree.root())}
    done = subprocess.run([sys.executable, "-c", CODE, how], env=given, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not the GNU C library")
def test_blocks_that_come_and_go_cost_fresh_pages_once() -> None:
    assert rounds_of_fresh_pages("keep") < 0.5 < 4 < rounds_of_fresh_pages("as it comes")
