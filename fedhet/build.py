"""From a resolved configuration to objects: the method, the world, one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from fedhet import config
from fedhet.aggregation import Aggregation, Flat
from fedhet.client import Device
from fedhet.compose import ONION, Method
from fedhet.protocols import Layer, View
from fedhet.roster import Clients
from fedhet.types import ClientId
from fedhet.world import World


def method(cfg: Mapping[str, Any]) -> Method:
    """The composed method. Raises Misfit, and ConfigError naming the key of a bad value."""
    work, layers = config.instantiate(cfg["work"], "work"), {slot: config.layers(cfg[slot], slot) for slot in ONION}
    if cfg["attack"]:
        attack = config.instantiate(cfg["attack"], "attack")
        work = attack(work)
        if isinstance(attack, Layer):  # it bends what goes on the wire, last of all
            layers["codec"] += (attack,)
    return Method(
        schedule=config.instantiate(cfg["schedule"], "schedule"),
        space=config.instantiate(cfg["space"], "space"),
        rule=config.instantiate(cfg["rule"], "rule"),
        budget=config.instantiate(cfg["budget"], "budget"),
        work=work,
        name=str(cfg["strategy"]),
        **layers,
    )


def world(cfg: Mapping[str, Any], clients: int) -> World:
    """Data and partition for a number of clients."""
    result: World = config.instantiate(
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
    built: Clients = config.instantiate(cfg["fleet"], "fleet").build(int(cfg["seed"]))
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
    from fedhet.limits import Limits
    from fedhet.server import Server

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
    built: Aggregation = config.instantiate(cfg["aggregation"], "aggregation") if "aggregation" in cfg else Flat()
    return built


def transport(node: Mapping[str, Any]) -> Any:
    """What carries a run, from its node of the configuration."""
    return config.instantiate(node, "transport")


def device(cfg: Mapping[str, Any]) -> Device:
    """One device of its own: what a process far from the server builds from a job's configuration."""
    here = world(cfg, int(cfg["clients"]))
    return Device(method(cfg), here.model(), here, int(cfg["seed"]))
