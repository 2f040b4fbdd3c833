"""Any unchanged Flower app on the virtual grid: its ServerApp and ClientApp, our fleets and our clock.

Virtual time follows from the fleet's profiles: download and upload from the bytes of a message's arrays, training from
a declared number of steps per `train` message and a third of that (forward only) per `evaluate`.

One seed determines all random numbers of the app: the server draws from the global generators of Python, NumPy and
PyTorch, seeded once, and a client from the same ones, seeded for each message by client and turn. State in the globals
of an app's modules is not reset: workers are processes, and without workers the clients share the server's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedhet.flower.compat import SUPERLINK_NODE_ID, ErrorCode
from fedhet.numerics.rng import seeded, stream
from fedhet.population.profile import Timing
from fedhet.population.roster import Clients
from fedhet.runs.event_log import Lines
from fedhet.simulation.flower_project import AppError, load_app, parse_run_config
from fedhet.simulation.global_seeds import Seeded
from fedhet.simulation.legacy_servers import crewed
from fedhet.simulation.virtual_grid import VirtualGrid
from fedhet.simulation.virtual_time import FIRST_NODE
from fedhet.simulation.worker_pool import Pool
from fedhet.system.threads import one_thread

__all__ = ["AppError", "Summary", "load_app", "parse_run_config", "simulate"]

logger = logging.getLogger("fedhet.simulation.flower_app")

CLIENT_CODE_ERRORS = (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.CLIENT_APP_CRASHED)
"""Errors that the client's code causes."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The totals of a simulation: virtual seconds, messages sent, messages lost (with their client's work), messages on
    which the client's code raised or crashed, bytes to and from clients."""

    virtual_seconds: float
    messages: int
    lost: int
    failed: int
    bytes_down: int
    bytes_up: int


def simulate(
    server: ServerApp,
    client: ClientApp,
    clients: Clients,
    *,
    run_config: Mapping[str, Any] | None = None,
    workers: int = 0,
    steps: int = 10,
    batch: int = 32,
    seed: int = 0,
    events: Path | None = None,
) -> Summary:
    """Run a Flower app in virtual time; returns when its ServerApp does. Raises what the ServerApp raises, and
    TooFewNodes where a strategy would wait for more clients than there are.

    An app of the former API works too (`ServerApp(server_fn=...)`, `ClientApp(client_fn)`): the clients of a round
    train at the same virtual time. `events` names a JSON-lines file with one row per message.
    """
    counts = {"messages": 0, "lost": 0, "failed": 0, "down": 0, "up": 0}
    config = dict(run_config or {})
    log = Lines(events) if events is not None else None
    turns: dict[int, int] = {}
    reported: set[str] = set()

    def timing_of(message: Message, at_ns: int) -> Timing:
        who = message.metadata.dst_node_id - FIRST_NODE
        size = sum(len(a.data) for r in message.content.array_records.values() for a in r.values())
        turn = turns[who] = turns.get(who, -1) + 1
        kind = message.metadata.message_type.partition(".")[0]
        return clients[who].simulate_timing(
            at_ns=at_ns,
            steps={"train": steps, "evaluate": max(1, steps // 3)}.get(kind, 0),
            batch=batch,
            bytes_down=size,
            bytes_up=size if kind == "train" else 0,
            flops_per_sample=None,
            rng=stream(seed, "trip", who, turn),
        )

    def observe(message: Message, timing: Timing) -> None:
        counts["messages"] += 1
        counts["lost"] += timing.lost is not None
        size = sum(len(a.data) for r in message.content.array_records.values() for a in r.values())
        counts["down"] += size
        counts["up"] += size if timing.lost is None and message.metadata.message_type.startswith("train") else 0
        if log is not None:
            row = {
                "t": grid.now(),
                "event": "client_timing",
                "job": counts["messages"] - 1,
                "type": message.metadata.message_type,
            }
            row |= {"client": message.metadata.dst_node_id - FIRST_NODE, "downloaded": timing.downloaded_ns / 1e9}
            log.write(
                row | {"trained": timing.trained_ns / 1e9, "arrives": timing.arrived_ns / 1e9, "lost": timing.lost}
            )

    def answered(message: Message, reply: Message) -> None:
        if not reply.has_error() or reply.error.code not in CLIENT_CODE_ERRORS:
            return
        counts["failed"] += 1
        reason = reply.error.reason or "no reason"
        if reason not in reported:  # one line for a thousand clients with the same error
            reported.add(reason)
            who = message.metadata.dst_node_id - FIRST_NODE
            logger.warning("client %d failed at a %s message: %s", who, message.metadata.message_type, reason)

    with one_thread(), seeded(seed), Pool(Seeded(client, seed), workers, isolate=True) as pool:
        grid = VirtualGrid(
            pool,
            range(FIRST_NODE, FIRST_NODE + len(clients)),
            timing_of,
            config=lambda node: {"partition-id": node - FIRST_NODE, "num-partitions": len(clients)},
            silent=lambda node: clients[node - FIRST_NODE].silent,
            observe=observe,
            heard=answered,
            run_config=config,
            polled=True,
        )
        try:
            with crewed(grid.crew, len(clients)):
                server(grid=grid, context=Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), config))
        finally:
            if log is not None:
                log.close()
        return Summary(grid.now(), *counts.values())
