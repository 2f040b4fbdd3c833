"""Rules that bound what single clients do, and what would reach the model beside them."""

from __future__ import annotations

from typing import Any

import pytest

from clients.work.scaffold import Scaffold
from clients.work.sgd import Sgd
from fedhet import config
from fedhet.compose import Method, Misfit
from strategies.budgets.fixed import Fixed
from strategies.rules.chain import Chain
from strategies.rules.clipping import Clipping
from strategies.rules.krum import Krum
from strategies.rules.mean import Mean
from strategies.rules.median import Median
from strategies.schedules.sync import Sync
from strategies.spaces.control import ControlVariates
from strategies.spaces.full import Full
from strategies.spaces.padded_lora import PaddedLora
from strategies.staleness.ca2fl import CA2FL

GUARDS = [Krum(), Median(), Chain([Clipping(1.0)], Mean()), Chain([], Krum())]
FREE = [Mean(), Mean(over="count"), Chain([], Mean())]


def method(rule: Any, space: Any = None, work: Any = None, **layers: Any) -> Method:
    return Method(Sync(), space or Full(), rule, work or Sgd(), Fixed(steps=1), **layers)


@pytest.mark.parametrize("rule", GUARDS, ids=repr)
def test_a_rule_that_guards_does_not_stand_beside_an_open_way(rule: Any) -> None:
    with pytest.raises(Misfit, match="with CA2FL the mean of all clients"):
        method(rule, staleness=CA2FL())
    with pytest.raises(Misfit, match="with ControlVariates the steps"):
        method(rule, ControlVariates(4), Scaffold())
    if "coordinates" not in rule.needs:
        with pytest.raises(Misfit, match="by_norm"):
            method(rule, PaddedLora(by_norm=True))
        method(rule, PaddedLora())
    method(rule)


@pytest.mark.parametrize("rule", FREE, ids=repr)
def test_a_mean_bounds_nobody_and_goes_with_everything(rule: Any) -> None:
    method(rule, staleness=CA2FL())
    method(rule, ControlVariates(4), Scaffold())


def test_every_rule_says_whether_it_guards() -> None:
    means = {"mean", "mean_count", "mean_population", "mean_uniform", "fednova", "fednova_population"}
    for name in config.options()["rule"]:
        rule = config.instantiate(config.resolved(config.compose([f"rule={name}"]))["rule"], "rule")
        assert rule.guards is (name not in means), name
