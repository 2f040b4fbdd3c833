"""Check that a client's state continues from its disk after its process was killed.

FedDyn's client stores g, which each job changes by the update it sends. Both are in the file that the device stores per
run, so two such files in a row show whether the second continues from the first:

    g_after = g_before - alpha * sent
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from fedhet.flower.client_state import ClientState, ClientStateStore
from fedhet.numerics import wire_format

LOOK_S = 0.02


def kept(state: Path, run: str) -> ClientState:
    """What a client's disk holds of a run. Empty before its first job."""
    return ClientStateStore(state / "work" / "runs").read(run)


def next_after(
    before: ClientState, state: Path, run: str, over: Callable[[], bool], seconds: float
) -> ClientState | None:
    """What the disk holds after the next job; None if the run is over before there is one."""
    end = time.monotonic() + seconds
    while (found := kept(state, run)).job == before.job:
        if over() or time.monotonic() > end:
            return None
        time.sleep(LOOK_S)
    return found


def grew(before: ClientState, after: ClientState, alpha: float) -> bool:
    """Whether the memory afterwards is the one before, moved by what was sent."""
    assert after.answer is not None
    sent = wire_format.open_tree(bytearray(after.answer.array_records["payload"]["tree"].data))
    step = torch.cat([leaf.flatten() for leaf in sent.values()])
    own, new = before.memories["work"]["linear"], after.memories["work"]["linear"]
    return bool(own.any()) and torch.allclose(new, own - alpha * step, rtol=1e-5, atol=1e-7)
