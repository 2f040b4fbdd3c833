"""From a resolved configuration to objects: the method, the world, one device."""

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
    """The composed method. Raises Misfit, and ConfigError naming the key of a bad value."""
    work, layers = (
        composition.instantiate(cfg["work"], "work"),
        {slot: composition.transforms(cfg[slot], slot) for slot in TRANSFORM_SLOTS},
    )
    if cfg["attack"]:
        attack = composition.instantiate(cfg["attack"], "attack")
        work = attack(work)
        if isinstance(attack, Transform):  # it bends what goes on the wire, last of all
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
    """Data and partition for a number of clients."""
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
    """The clients and their profiles."""
    built: Clients = composition.instantiate(cfg["fleet"], "fleet").build(int(cfg["seed"]))
    return built


@runtime_checkable
class Ranked(Protocol):
    """A budget that chooses a rank for each client."""

    def rank(self, client: ClientId, view: View) -> int:
        """The client's rank; 0 if it cannot afford any."""
        ...


def ranks(cfg: Mapping[str, Any], clients: Clients) -> Callable[[ClientId], int] | None:
    """The rank a client gets in its first job, 0 if it affords none; None if the budget does not choose by client.

    Data and model are loaded only for a budget that does: what a rank costs depends on the model.
    """
    from fedhet.engine.server import Server
    from fedhet.engine.stopping import Limits

    parts = method(cfg)
    budget = parts.budget
    if not isinstance(budget, Ranked) or not callable(budget.rank):  # others hold a number of that name
        return None
    here = world(cfg, len(clients))
    roster = clients.with_examples(here.examples())
    state = parts.space.begin(here.model())
    view = Server(parts, state, roster, Limits(versions=1), int(cfg["seed"]), lambda t, name, fields: None)
    return lambda client: budget.rank(client, view)


def aggregation(cfg: Mapping[str, Any]) -> Aggregation:
    """Where updates are combined; with the server for configurations written before there was a choice."""
    built: Aggregation = composition.instantiate(cfg["aggregation"], "aggregation") if "aggregation" in cfg else Flat()
    return built


def transport(node: Mapping[str, Any]) -> Any:
    """What carries a run, from its node of the configuration."""
    return composition.instantiate(node, "transport")


def device(cfg: Mapping[str, Any]) -> Device:
    """One device of its own: what a process far from the server builds from a job's configuration."""
    here = world(cfg, int(cfg["clients"]))
    return Device(method(cfg), here.model(), here, int(cfg["seed"]))
