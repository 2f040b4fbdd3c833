"""Any unchanged Flower app on the virtual grid: its ServerApp and ClientApp, our fleets and our clock.

Virtual time is charged by the fleet's profiles: download and upload by the bytes of a message's arrays, training by a
declared number of steps per `train` message and a third of that (forward only) per `evaluate`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedhet.flower_compat import SUPERLINK_NODE_ID
from fedhet.grids.pool import Pool
from fedhet.grids.virtual import VirtualGrid
from fedhet.profile import Trip
from fedhet.record import Lines
from fedhet.roster import Clients
from fedhet.streams import stream
from fedhet.transports import FIRST_NODE, one_thread

A = TypeVar("A", ServerApp, ClientApp)


class AppError(ValueError):
    """A `path:attribute` that names no Flower app."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a simulation did: virtual seconds, messages sent, replies lost, bytes each way."""

    virtual_seconds: float
    messages: int
    lost: int
    bytes_down: int
    bytes_up: int


def load_app(spec: str, kind: type[A]) -> A:
    """The app at `package.module:attribute` or `path/to/file.py:attribute`. Raises AppError saying what is missing."""
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place:
        raise AppError(f"{spec!r}: write module:attribute or file.py:attribute")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise AppError(f"{spec!r}: there is no file {place}")
        sys.path.insert(0, str(path.parent.resolve()))
        name = path.stem
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        found.loader.exec_module(module)
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise AppError(f"{spec!r}: {error}") from None
    app = getattr(module, attribute, None)
    if not isinstance(app, kind):
        have = sorted(k for k, v in vars(module).items() if isinstance(v, kind))
        raise AppError(f"{spec!r} is no {kind.__name__}; {place} has {have or 'none'}")
    return app


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
    """Run a Flower app in virtual time; returns when its ServerApp does. Raises what the ServerApp raises.

    Flower's strategies sample with Python's global `random`: it is seeded here, so equal seeds give equal runs.
    `events` names a JSON-lines file for one row per message.
    """
    random.seed(seed)
    counts = {"messages": 0, "lost": 0, "down": 0, "up": 0}
    config = dict(run_config or {})
    log = Lines(events) if events is not None else None
    turns: dict[int, int] = {}

    def travel(message: Message, at_ns: int) -> Trip:
        who = message.metadata.dst_node_id - FIRST_NODE
        size = sum(len(a.data) for r in message.content.array_records.values() for a in r.values())
        turn = turns[who] = turns.get(who, -1) + 1
        train = message.metadata.message_type.startswith("train")
        return clients[who].trip(
            at_ns=at_ns,
            steps=steps if train else max(1, steps // 3),
            batch=batch,
            bytes_down=size,
            bytes_up=size if train else 0,
            flops_per_sample=None,
            rng=stream(seed, "trip", who, turn),
        )

    def observe(message: Message, trip: Trip) -> None:
        counts["messages"] += 1
        counts["lost"] += trip.lost is not None
        size = sum(len(a.data) for r in message.content.array_records.values() for a in r.values())
        counts["down"] += size
        counts["up"] += size if trip.lost is None and message.metadata.message_type.startswith("train") else 0
        if log is not None:
            row = {
                "t": grid.now(),
                "event": "flight",
                "job": counts["messages"] - 1,
                "type": message.metadata.message_type,
            }
            row |= {"client": message.metadata.dst_node_id - FIRST_NODE, "downloaded": trip.downloaded_ns / 1e9}
            log.write(row | {"trained": trip.trained_ns / 1e9, "arrives": trip.arrived_ns / 1e9, "lost": trip.lost})

    with one_thread(), Pool(client, workers, isolate=True) as pool:
        grid = VirtualGrid(
            pool,
            range(FIRST_NODE, FIRST_NODE + len(clients)),
            travel,
            config=lambda node: {"partition-id": node - FIRST_NODE, "num-partitions": len(clients)},
            silent=lambda node: clients[node - FIRST_NODE].silent,
            observe=observe,
            run_config=config,
        )
        try:
            server(grid=grid, context=Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), config))
        finally:
            if log is not None:
                log.close()
        return Summary(grid.now(), counts["messages"], counts["lost"], counts["down"], counts["up"])


def parse_run_config(text: str) -> dict[str, Any]:
    """`key=value key=value` with TOML-like scalars, as `flwr run --run-config` takes it. Raises ValueError."""
    config: dict[str, Any] = {}
    for pair in text.split():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--run-config: {pair!r} is not key=value")
        try:
            config[key] = json.loads(value)
        except ValueError:
            config[key] = value
    return config
