"""The protocols of a federation: one per axis of a method. Read this package first; everything else is built from it.

    Schedule      who trains when, and when to combine      strategies/schedules
    BudgetPolicy  how much work a client gets               strategies/budgets
    Space         what is sent, installed and combined      strategies/spaces
    Rule          N updates to one                          strategies/rules
    Transform     staleness, codec, privacy, optimizer      strategies/{staleness,codecs,privacy,optimizers}
    Work          local training                            clients/work

Plug-ins are frozen dataclasses of hyper-parameters. State that changes is in a `Memory` that the host stores, except
for a `Schedule`, whose fields are plain data (numbers, strings, lists, dicts, sets, nested dataclasses) that can be
saved.

An attribute that a protocol reads is declared as a property: a class variable, a field of a frozen dataclass and a
property all implement it. The files: `axes` (above), `space`, `view` (what a plug-in may read of the server), `fleet`
(registered clients and time), `optional` (capabilities that a plug-in may have in addition).
"""

from __future__ import annotations

from typing import Any

from fedhet import former_names
from fedhet.protocols.axes import BudgetPolicy, Rule, Schedule, Shard, Transform, Work
from fedhet.protocols.fleet import Clock, Idle, Observation, Roster
from fedhet.protocols.optional import (
    Adapters,
    BatchedWork,
    NeedsClients,
    Normed,
    OffersIndexedBatches,
    Partial,
    implements,
)
from fedhet.protocols.space import Space
from fedhet.protocols.view import View

__all__ = [
    "Adapters",
    "BatchedWork",
    "BudgetPolicy",
    "Clock",
    "Idle",
    "NeedsClients",
    "Normed",
    "Observation",
    "OffersIndexedBatches",
    "Partial",
    "Roster",
    "Rule",
    "Schedule",
    "Shard",
    "Space",
    "Transform",
    "View",
    "Work",
    "implements",
]


def __getattr__(name: str) -> Any:
    return former_names.renamed(__name__, name)
