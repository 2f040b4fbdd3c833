"""Partial sums in other processes: correct, with the same bits for every order, refused for bad input."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedhet.config import composition
from fedhet.engine.method import Misfit
from fedhet.hierarchy.aggregation import Hierarchical
from fedhet.hierarchy.reduction_tree import Aggregators
from fedhet.numerics import tree
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.runs.experiment import Experiment
from fedhet.types import Budget, Job, Update
from strategies.rules.chain import Chain
from strategies.rules.clipping import Clipping
from strategies.rules.mean import Mean
from strategies.schedules.fedat import FedAT
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.fedcompass import FedCompass
from strategies.schedules.sync import Sync
from strategies.schedules.time_window import TimeWindow
from strategies.spaces.full import Full

SIZE = 5003
SCHEMA = Schema((("a", Leaf((3,))), ("b", Leaf((SIZE - 3,)))))
VIEW: Any = SimpleNamespace(roster=SimpleNamespace(total_examples=1000, __len__=lambda self: 40))


def updates(count: int, whole: bool = False) -> list[Update]:
    draw = torch.Generator().manual_seed(count)
    made = []
    for n in range(count):
        x = torch.randint(-9, 9, (SIZE,), generator=draw).float() if whole else torch.randn(SIZE, generator=draw)
        made.append(Update(Job(100 + n, n, 0, 0, Budget(), 0.0), FlatTree(SCHEMA, x), float(n % 5 + 1)))
    return made


@pytest.fixture
def began() -> Iterator[Any]:
    """Starts aggregators and ends them."""
    alive: list[Aggregators] = []

    def begin(rule: Any = None, **given: Any) -> Aggregators:
        method: Any = SimpleNamespace(rule=rule or Mean(), space=Full(), transforms=(), schedule=None)
        one = Hierarchical(**given).begin(method, 40)
        assert isinstance(one, Aggregators)
        alive.append(one)
        return one

    yield begin
    for one in alive:
        one.close()


def flat(one: Any) -> torch.Tensor:
    assert isinstance(one, FlatTree)
    return one.flat


def combined(aggregators: Aggregators, arriving: list[Update], rule: Any = None) -> torch.Tensor:
    held = [aggregators.arrived(u) for u in arriving]
    held.sort(key=lambda u: (u.job.client, u.job.id))
    return flat(aggregators.combine(rule or Mean(), held, None, VIEW)).clone()  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"fan_in": 2}, {"hosts": [3, 2, 4], "fan_in": 3}, {"hosts": [1, 1, 1, 1]}])
def test_the_tree_gives_the_mean(began: Any, given: dict[str, Any]) -> None:
    arriving = updates(11)
    got = combined(began(processes=2, **given), arriving).double()
    weights = np.array([u.weight for u in arriving])
    expected = sum(w * flat(u.delta).double() for w, u in zip(weights, arriving, strict=True)) / weights.sum()
    assert float((got - expected).norm() / expected.norm()) < 1e-6


def test_whole_numbers_are_summed_exactly_in_any_shape_and_order(began: Any) -> None:
    arriving = updates(13, whole=True)
    total = sum(u.weight for u in arriving)
    expected = sum(u.weight * flat(u.delta) for u in arriving) / total
    for fan_in, order in ((2, 1), (5, -1)):
        assert torch.equal(combined(began(fan_in=fan_in, processes=1), arriving[::order]), expected)


def test_early_or_late_and_any_number_of_processes_give_the_same_bits(began: Any) -> None:
    arriving = updates(10)
    several = [
        combined(began(hosts=[4, 8], fan_in=3, eager=eager, processes=processes), arriving)
        for eager, processes in ((True, 1), (False, 1), (True, 3))
    ]
    assert torch.equal(several[0], several[1]) and torch.equal(several[0], several[2])


def test_what_is_dropped_or_left_for_later_does_not_count(began: Any) -> None:
    arriving = updates(9)
    whole = began(fan_in=2, processes=1)
    held = [whole.arrived(u) for u in arriving]
    whole.dropped([103])
    chosen = [held[i] for i in (0, 1, 4, 5, 7)]
    first = flat(whole.combine(Mean(), chosen, None, VIEW)).clone()
    second = flat(whole.combine(Mean(), [held[i] for i in (2, 6, 8)], None, VIEW)).clone()
    assert torch.equal(first, combined(began(fan_in=2, processes=1), [arriving[i] for i in (0, 1, 4, 5, 7)]))
    assert torch.equal(second, combined(began(fan_in=2, processes=1), [arriving[i] for i in (2, 6, 8)]))
    assert whole.team.waiting == 0 and not whole._held and not whole._sums


def test_a_process_that_is_killed_loses_nothing(began: Any) -> None:
    arriving = updates(12)
    expected = combined(began(fan_in=2, processes=1), arriving)
    aggregators = began(fan_in=2, processes=2, eager=False)
    held = [aggregators.arrived(u) for u in arriving[:4]]
    aggregators.team.resize(2)
    for process in list(aggregators.team._processes):
        os.kill(process.popen.pid, signal.SIGKILL)
    held += [aggregators.arrived(u) for u in arriving[4:]]
    assert torch.equal(flat(aggregators.combine(Mean(), held, None, VIEW)), expected)
    assert aggregators.team.started >= 3


def test_processes_are_reused_and_gone_after_a_while_without_work(began: Any) -> None:
    aggregators = began(fan_in=2, processes=1, idle_seconds=0.5)
    for _ in range(3):
        combined(aggregators, updates(4))
    assert aggregators.team.started == 1
    os.waitpid(aggregators.team._processes[0].popen.pid, 0)  # it ends by itself
    combined(aggregators, updates(4))
    assert aggregators.team.started == 2 and aggregators.team.deaths == 0


def test_results_outlive_the_aggregators_and_memory_is_used_again(began: Any) -> None:
    aggregators = began(fan_in=2, processes=1)
    for _ in range(20):
        combined(aggregators, updates(6))
    assert aggregators.team._arena._top < 40 * (4 * SIZE + 4096)
    held = [aggregators.arrived(u) for u in updates(3)]
    kept = flat(aggregators.combine(Mean(), held, None, VIEW))
    before = kept.clone()
    aggregators.close()
    assert torch.equal(kept, before)
    aggregators.close = lambda: None


@pytest.mark.parametrize(("over", "uniform"), [("cohort", True), ("population", False), ("count", False)])
def test_other_denominators_divide_once_at_the_top(began: Any, over: str, uniform: bool) -> None:
    rule, arriving = Mean(over=over, uniform=uniform), updates(5, whole=True)
    got = combined(began(rule, fan_in=2, processes=1), arriving, rule)
    c = rule.coefficients(np.empty((0, 0)), np.array([u.weight for u in arriving]), arriving, VIEW)
    expected = sum(float(x) * flat(u.delta).double() for x, u in zip(c, arriving, strict=True))
    assert torch.allclose(got.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_mean_of_clipped_updates_is_a_rule_that_a_tree_can_carry_out(began: Any) -> None:
    rule, arriving = Chain([Clipping(60.0), Clipping(50.0)], Mean()), updates(7)
    arriving[3] = replace(arriving[3], delta=FlatTree(SCHEMA, 1e4 * flat(arriving[3].delta)))
    arriving[5] = replace(arriving[5], scale=0.5)
    got = combined(began(rule, fan_in=3, processes=1), arriving, rule)
    dense: Any = SimpleNamespace(
        gram=tree.gram, combine=lambda deltas, c, s: tree.weighted_sum(deltas, tree.scaled(c, s))
    )
    expected = flat(rule(arriving, dense, VIEW))
    assert float((got - expected).norm() / expected.norm()) < 1e-6
    assert 1.0 < float(expected.norm()) < 60.0


@pytest.mark.parametrize(
    ("schedule", "hosts", "count", "leaf"),
    [
        (Sync(), [64], 40, 8),  # 5 leaves: 9 + 6 passes are left, as many as with 6 leaves of 7
        (Sync(per_round=20), [64], 20, 5),
        (Sync(per_round=99), [64], 40, 8),
        (FedBuff(size=16), [64], 16, 4),
        (FedBuff(size=16), [6, 12], 16, 5),  # ten and six: best fit fills the small host first
        (TimeWindow(goal=9), [64], 9, 3),
        (TimeWindow(), [30], 30, 6),
        (FedAT(tiers=4), [64], 10, 5),
        (FedAT(tiers=4, per_round=6), [64], 6, 6),
        (FedCompass(), [64], 40, 8),
        (FedCompass(), [8, 8], 16, 4),
    ],
)
def test_the_fan_in_is_planned_from_what_the_schedule_foresees_or_what_there_is_room_for(
    schedule: Any, hosts: list[int], count: int, leaf: int
) -> None:
    method: Any = SimpleNamespace(rule=Mean(), space=Full(), transforms=(), schedule=schedule)
    (told,) = Hierarchical(hosts=hosts).notices(method, 40)
    assert f"leaves sum {leaf} updates each, planned for {count} at a time, " in told
    (given,) = Hierarchical(hosts=hosts, fan_in=3).notices(method, 40)
    assert given.endswith("leaves sum 3 updates each")


def test_a_planned_fan_in_gives_the_bits_of_the_same_number_given(began: Any) -> None:
    arriving = updates(11)
    planned = combined(began(fan_in="auto", processes=1, hosts=[11]), arriving)
    assert torch.equal(planned, combined(began(fan_in=4, processes=1, hosts=[11]), arriving))
    assert not torch.equal(planned, combined(began(fan_in=5, processes=1, hosts=[11]), arriving))


@pytest.mark.parametrize("fan_in", [1, "four", 0, 2.5, True])
def test_a_fan_in_that_is_none_is_refused(fan_in: Any) -> None:
    with pytest.raises(ValueError, match="must be auto, or a whole number from 2 on"):
        Hierarchical(fan_in=fan_in)


SMALL = ["fleet=exponential", "fleet.clients=6", "budget.epochs=null", "budget.steps=2", "workers=0", "stop.versions=4"]


def composed(*texts: str) -> Experiment:
    return Experiment.of(composition.resolved(composition.compose([*SMALL, *texts])))


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["rule=colluding"], "rule Colluding works on updates in its own way"),
        (["staleness=polynomial"], "layer Polynomial"),
        (["strategy=scaffold"], "space ControlVariates"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(texts: list[str], named: str) -> None:
    with pytest.raises(Misfit, match=named):
        composed("aggregation=hierarchical", *texts)


@pytest.mark.parametrize("more", [[], ["schedule=fedbuff", "schedule.size=3", "rule=mean_count"]])
def test_a_run_goes_as_with_flat_aggregation_and_repeats_bit_for_bit(tmp_path: Any, more: list[str]) -> None:
    split = ["aggregation=hierarchical", "aggregation.fan_in=2", "aggregation.hosts=[2,8]", *more]
    one = composed(*split, "aggregation.processes=1").run(tmp_path / "one").row
    two = composed(*split, "aggregation.processes=2", "aggregation.eager=false").run(tmp_path / "two").row
    flat = composed(*more).run(tmp_path / "flat").row
    assert one["weights_sha256"] == two["weights_sha256"] and one["events_sha256"] == two["events_sha256"]
    for key in ("versions", "virtual_seconds", "updates", "client_tasks"):
        assert one[key] == flat[key], key
    assert one["loss"] == pytest.approx(flat["loss"], rel=1e-3)


def test_a_run_that_broke_off_goes_on_bit_for_bit(tmp_path: Any) -> None:
    """Updates that had arrived arrive again, in their order, whatever had been summed of them."""
    given = ["aggregation=hierarchical", "aggregation.fan_in=2", "aggregation.hosts=[2,8]", "schedule=fedbuff"]
    given += ["schedule.size=4", "rule=mean_count", "stop.versions=5", "checkpoint.every_seconds=0.0"]

    class Enough(Exception):
        pass

    def stop(row: Any) -> None:
        if row["version"] >= 2:
            raise Enough

    whole = composed(*given).run(tmp_path / "whole").row
    with pytest.raises(Enough):
        composed(*given).run(tmp_path / "broken", progress=stop)
    resumed = composed(*given).run(tmp_path / "broken", resume=True).row
    for key in ("weights_sha256", "events_sha256", "versions", "updates"):
        assert resumed[key] == whole[key], key


def test_another_server_app_aggregates_flat_or_gives_an_error() -> None:
    from fedhet.deployment.strategy import MethodStrategy

    experiment = composed("aggregation=hierarchical")
    model = experiment.world.model()
    initial = ArrayRecord({k: Array(v.numpy().copy()) for k, v in model.tree().items()})
    with pytest.raises(ValueError, match="use aggregation=flat"):
        MethodStrategy(experiment)._server(initial, experiment.limits)
