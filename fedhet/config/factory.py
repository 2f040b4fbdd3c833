"""Builds objects from a resolved configuration: method, world, fleet, aggregation, transport, device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from fedhet.config import composition
from fedhet.engine.aggregator import Aggregation, Flat
from fedhet.engine.client_runner import Device
from fedhet.engine.method import TRANSFORM_SLOTS, Method
from fedhet.population.roster import Clients
from fedhet.protocols import Transform, View
from fedhet.types import ClientId
from fedhet.world import World


def method(cfg: Mapping[str, Any]) -> Method:
    """Build the method. Raises Misfit, and ConfigError with the key of a bad value."""
    work, layers = (
        composition.instantiate(cfg["work"], "work"),
        {slot: composition.transforms(cfg[slot], slot) for slot in TRANSFORM_SLOTS},
    )
    if cfg["attack"]:
        attack = composition.instantiate(cfg["attack"], "attack")
        work = attack(work)
        if isinstance(attack, Transform):  # an attack on the encoded update is applied last
            layers["codec"] += (attack,)
    return Method(
        schedule=composition.instantiate(cfg["schedule"], "schedule"),
        space=composition.instantiate(cfg["space"], "space"),
        rule=composition.instantiate(cfg["rule"], "rule"),
        budget=composition.instantiate(cfg["budget"], "budget"),
        work=work,
        name=str(cfg["strategy"]),
        **layers,
    )


def world(cfg: Mapping[str, Any], clients: int) -> World:
    """Build the world (data, partition, model) for a number of clients. Raises ConfigError."""
    result: World = composition.instantiate(
        {
            **cfg["world"],
            "data": cfg["data"],
            "partition": cfg["partition"],
            "model": cfg["model"],
            "clients": clients,
            "seed": cfg["seed"],
        },
        "world",
    )
    return result


def fleet(cfg: Mapping[str, Any]) -> Clients:
    """Build the clients with their profiles. Raises ConfigError."""
    built: Clients = composition.instantiate(cfg["fleet"], "fleet").build(int(cfg["seed"]))
    return built


@runtime_checkable
class Ranked(Protocol):
    """A budget that chooses a rank for each client."""

    def rank(self, client: ClientId, view: View) -> int:
        """The client's rank; 0 if it cannot afford any."""
        ...


def ranks(cfg: Mapping[str, Any], clients: Clients) -> Callable[[ClientId], int] | None:
    """A function from client to the rank of its first job (0: it cannot afford any); None if the budget chooses no
    ranks.

    Data and model are loaded only if it does: the cost of a rank depends on the model.
    """
    from fedhet.engine.server import Server
    from fedhet.engine.stopping import Limits

    parts = method(cfg)
    budget = parts.budget
    if not isinstance(budget, Ranked) or not callable(budget.rank):  # other budgets have a number of that name
        return None
    here = world(cfg, len(clients))
    roster = clients.with_examples(here.examples())
    state = parts.space.begin(here.model())
    view = Server(parts, state, roster, Limits(versions=1), int(cfg["seed"]), lambda t, name, fields: None)
    return lambda client: budget.rank(client, view)


def aggregation(cfg: Mapping[str, Any]) -> Aggregation:
    """Build the aggregation; `Flat` for configurations of versions without this axis. Raises ConfigError."""
    built: Aggregation = composition.instantiate(cfg["aggregation"], "aggregation") if "aggregation" in cfg else Flat()
    return built


def transport(node: Mapping[str, Any]) -> Any:
    """Build the transport of a run from its node. Raises ConfigError."""
    return composition.instantiate(node, "transport")


def device(cfg: Mapping[str, Any]) -> Device:
    """Build one device, in a process of its own, from a job's configuration. Raises ConfigError and Misfit."""
    here = world(cfg, int(cfg["clients"]))
    return Device(method(cfg), here.model(), here, int(cfg["seed"]))
