"""What the server observed of each client, and which clients it reports as failing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedhet.engine.stopping import MAX_REPORTED_CLIENTS, REPORTED_AFTER_FAULTS
from fedhet.types import ClientId


@dataclass(slots=True)
class ClientHistory:
    """What the server observed of one client."""

    finished: int = 0
    failed: int = 0
    seconds_per_step: float | None = None
    rank: int = 0
    """The rank the client reported it continues with; 0 if it reported none."""
    faults: int = 0
    """Jobs in a row that failed by the client's own fault, not by its connection; `why` is the last one's reason."""
    why: str = ""


def failing_clients(seen: Mapping[ClientId, ClientHistory]) -> list[str]:
    """One sentence per cause about the clients whose jobs all failed by their own fault, or the last few in a row."""
    by_cause: dict[str, list[ClientId]] = {}
    for client, history in sorted(seen.items()):
        if history.faults and (not history.finished or history.faults >= REPORTED_AFTER_FAULTS):
            by_cause.setdefault(error_cause(history.why), []).append(client)
    sentences = []
    for clients in by_cause.values():
        first, more = seen[clients[0]], len(clients) - MAX_REPORTED_CLIENTS
        who = ", ".join(map(str, clients[:MAX_REPORTED_CLIENTS])) + (f" and {more} more" if more > 0 else "")
        which = "the last" if first.finished else "all"
        jobs = f"{which} {first.faults} jobs of {'it' if len(clients) == 1 else 'the first'} failed, {first.why}"
        sentences.append(f"client{'s' * (len(clients) > 1)} {who}: nothing arrives, {jobs}")
    return sentences


def error_cause(reason: str) -> str:
    """The part that equal errors of different clients have in common: the text without its numbers."""
    return re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", reason)
