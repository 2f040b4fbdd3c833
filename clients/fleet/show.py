"""A fleet's statistics, its table for the terminal, and (from `drawing`) its picture.

They show what clients declare. The table shows a part of a large fleet; the statistics are of all clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clients.fleet.drawing import picture
from clients.fleet.speed import away, numbers, picked, rate, slowness, slownesses, speed_unit
from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.report import number_format
from fedhet.types import ClientId

__all__ = ["describe", "online_share", "picture", "table"]

ROWS, BAR = 24, 10

Column = tuple[str, str | None, Callable[[Profile], str]]
"""A column's name, the default value that needs no column, and the cell of a client."""


def online_share(profile: Profile) -> float | None:
    """The share of its period in which a client is online, 1 without windows; None if its windows do not repeat."""
    if not profile.availability:
        return 1.0
    if profile.availability_period_s is None:
        return None
    return sum(b - a for a, b in profile.availability) / profile.availability_period_s


def describe(clients: Clients) -> dict[str, float | int]:
    """Statistics of the fleet: numbers of clients, of those that may be offline or drop out, and range of speeds.

    Speeds declared in different units are not compared: "fastest", "median", "slowest" and "ratio" are left out then.
    """
    facts: dict[str, float | int] = {
        "clients": len(clients),
        "away": away(clients),
        "unreliable": int(((numbers(clients, "dropout_prob") > 0) | (numbers(clients, "silent") > 0)).sum()),
    }
    slow = slownesses(clients)
    if len(slow) == 1:
        (values,) = slow.values()
        low, high = float(values.min()), float(values.max())
        facts |= {"fastest": low, "median": float(np.median(values)), "slowest": high, "ratio": high / low}
    return facts


def table(clients: Clients, rank: Callable[[ClientId], int] | None = None) -> RenderableType:
    """The statistics, and up to 24 clients with a bar for their slowness; `rank` gives a client's LoRA rank."""
    facts, slow = describe(clients), slownesses(clients)
    head = Table.grid(padding=(0, 2))
    head.add_row(Text("clients", "bold"), f"{facts['clients']:,}")
    for unit, values in slow.items():
        told = f"{values.min():.3g} to {values.max():.3g}, median {np.median(values):.3g}"
        head.add_row(Text(unit, "bold"), told + (f" ({len(values):,} clients)" if len(slow) > 1 else ""))
    if "ratio" in facts:
        head.add_row(Text("slowest / fastest", "bold"), f"{facts['ratio']:.1f}")
    head.add_row(Text("not always online", "bold"), f"{facts['away']:,}")
    head.add_row(Text("may drop out", "bold"), f"{facts['unreliable']:,}")
    if clients.note:
        head.add_row(Text("note", "bold"), clients.note)
    return Group(head, "", _rows(clients, slow, rank))


def _rows(clients: Clients, slow: Mapping[str, np.ndarray], rank: Callable[[ClientId], int] | None) -> Table:
    """Rows of some clients; a column with the default value in every cell is left out."""
    shown = {client: clients[client] for client in picked(len(clients), ROWS)}
    unit = next(iter(slow)) if len(slow) == 1 else "speed"
    columns: list[Column] = [
        ("class", "", lambda p: p.device_class),
        (unit, None, lambda p: f"{slowness(p):.3g}" + ("" if len(slow) == 1 else f" {speed_unit(p)}")),
        ("up/s", "unlimited", lambda p: rate(p.uplink_bytes_per_s)),
        ("down/s", "unlimited", lambda p: rate(p.downlink_bytes_per_s)),
    ]
    if rank is None:
        columns += _presence()
    else:  # columns that determine a rank
        columns.append(("memory", "unlimited", lambda p: rate(p.memory_bytes)))
    cells = {name: [tell(p) for p in shown.values()] for name, _, tell in columns}
    kept = [name for name, plain, _ in columns if set(cells[name]) != {plain}]
    if rank is not None:
        kept, cells = [*kept, "rank"], {**cells, "rank": [str(rank(client)) for client in shown]}
    rows = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    rows.add_column("id", justify="right")
    rows.add_column("name", no_wrap=True)
    for name in kept:
        rows.add_column(name, justify="left" if name == "class" else "right", no_wrap=True)
    rows.add_column("slowness", min_width=BAR, no_wrap=True)
    for at, (client, p) in enumerate(shown.items()):
        bar = "▪" * max(1, round(BAR * slowness(p) / float(slow[speed_unit(p)].max())))
        rows.add_row(str(client), p.name, *(cells[name][at] for name in kept), bar)
    return rows


def _presence() -> list[Column]:
    return [
        ("latency", "0 s", lambda p: number_format.seconds(p.latency_s)),
        ("online", "100%", _online),
        ("dropout", "0%", lambda p: f"{p.dropout_prob:.0%}" if not p.silent else f"{p.dropout_prob:.0%} silent"),
    ]


def _online(profile: Profile) -> str:
    share = online_share(profile)
    return "windows" if share is None else f"{share:.0%}"
