"""Rules that compare updates, by coordinate shards in other processes: the bits of flat aggregation, also after
faults."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fedhet.bases import AbstractCoordinateRule
from fedhet.bases.rule import AbstractRule
from fedhet.config import composition
from fedhet.hierarchy.aggregation import Hierarchical, summed
from fedhet.hierarchy.column_shards import WIDTH, Columns
from fedhet.hierarchy.processes import Team
from fedhet.numerics.tree import FlatTree, Leaf, Schema
from fedhet.provenance import source_tree
from fedhet.runs.experiment import Experiment
from fedhet.testing.quadratic import FakeView, QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Update
from strategies.rules.chain import Chain
from strategies.rules.krum import Krum, MultiKrum
from strategies.rules.nnm import Nnm
from strategies.rules.trimmed_mean import TrimmedMean
from strategies.spaces.full import Full

COUNT, SIZE = 11, 2 * WIDTH + 5003
SCHEMA = Schema((("a", Leaf((3,))), ("b", Leaf((SIZE - 3,)))))
SPACE = Full()
RULES = [
    name for name in composition.options()["rule"] if name not in ("none", "colluding")
]  # which is no rule on rows
MIXED = Chain([Nnm()], TrimmedMean())
"""Asks for everything there is: inner products, a matrix, single coordinates."""


def chosen(option: str) -> dict[str, Any]:
    """An option's file with what its defaults put into it: composing a whole run takes a hundred times as long."""
    node: Any = OmegaConf.to_container(OmegaConf.load(source_tree.conf() / f"{option}.yaml"))
    for entry in [e for e in node.pop("defaults", []) if e != "_self_"]:
        for key, name in entry.items():
            group, _, at = key.strip("/").partition("@")
            node[at] = chosen(f"{group}/{name}")
    return dict(node)


def view() -> Any:
    return FakeView(equal_clients(QuadraticWorld([1.0] * COUNT, np.zeros(COUNT))), SPACE)


def updates(count: int = COUNT) -> list[Update]:
    draw, made = torch.Generator().manual_seed(5), []
    common = torch.randn(SIZE, generator=draw)
    for n in range(count):
        x = (common + 0.5 * torch.randn(SIZE, generator=draw)) * (-4.0 if n in (3, 8) else 1.0)
        made.append(Update(Job(100 + n, n, 0, 0, Budget(5), 0.0), FlatTree(SCHEMA, x), float(n % 5 + 1), 1.0 - n / 100))
    return made


ARRIVING = updates()


@pytest.fixture(scope="module")
def columns() -> Iterator[Columns]:
    """Two processes for all tests here: what they need of torch they load once."""
    one = Columns(Team(2, 60.0), eager=True)
    yield one
    one.close()


def combined(columns: Any, rule: Any, arriving: list[Update] = ARRIVING) -> torch.Tensor:
    answer = columns.combine(rule, [columns.arrived(u) for u in arriving], SPACE, view())
    assert Schema.of(answer) == SCHEMA
    return flat(answer).clone()


def flat(tree: Any) -> torch.Tensor:
    assert isinstance(tree, FlatTree)
    return tree.flat


@pytest.mark.parametrize("name", RULES)
def test_every_rule_gives_what_it_gives_with_the_server(columns: Columns, name: str) -> None:
    rule = composition.instantiate(chosen(f"rule/{name}"), "rule")
    given, method = (
        Hierarchical(fan_in=3, processes=1),
        SimpleNamespace(rule=rule, space=SPACE, transforms=(), schedule=None),
    )
    expected = flat(rule(ARRIVING, SPACE, view()))
    assert float(expected.norm()) > 0.0
    if summed(rule):
        tree = given.begin(method, COUNT)  # type: ignore[arg-type]
        got = combined(tree, rule)
        tree.close()
        assert float((got - expected).norm() / expected.norm()) < 1e-6
    else:
        given.check(method)  # type: ignore[arg-type]
        assert torch.equal(combined(columns, rule), expected)
    assert summed(rule) == (name in ("mean", "mean_count", "mean_population", "mean_uniform", "clipping"))


def test_what_is_dropped_or_left_for_later_does_not_count(columns: Columns) -> None:
    held = [columns.arrived(u) for u in ARRIVING]
    columns.dropped([103])
    some = [0, 1, 4, 5, 7]
    first = flat(columns.combine(Krum(), [held[i] for i in some], SPACE, view()))
    assert torch.equal(first, flat(Krum()([ARRIVING[i] for i in some], SPACE, view())))
    left = [2, 6, 8, 9, 10]
    second = flat(columns.combine(Krum(), [held[i] for i in left], SPACE, view()))
    assert torch.equal(second, flat(Krum()([ARRIVING[i] for i in left], SPACE, view())))
    assert not columns._held and not columns._slices.held and columns.team.waiting == 0


def test_what_a_layer_made_of_an_update_is_what_counts(columns: Columns) -> None:
    def changed(u: Update) -> Update:
        return replace(u, delta=FlatTree(SCHEMA, flat(u.delta) * 0.5), scale=0.25) if u.job.client % 2 else u

    held = [changed(columns.arrived(u)) for u in ARRIVING]
    answer = flat(columns.combine(MultiKrum(), held, SPACE, view()))
    assert torch.equal(answer, flat(MultiKrum()([changed(u) for u in ARRIVING], SPACE, view())))


def test_memory_is_used_again(columns: Columns) -> None:
    tops = []
    for _ in range(3):
        combined(columns, MultiKrum())
        tops.append(columns.team._arena._top)
    assert tops[0] == tops[1] == tops[2]


def test_a_rule_that_cannot_stand_so_few_says_so_as_with_the_server(columns: Columns) -> None:
    rule = TrimmedMean(f=6)
    with pytest.raises(ValueError, match="TrimmedMean needs 13 updates or more") as there:
        combined(columns, rule)
    with pytest.raises(ValueError) as here:
        rule(ARRIVING, SPACE, view())
    assert str(there.value) == str(here.value)
    assert torch.equal(combined(columns, Krum()), flat(Krum()(ARRIVING, SPACE, view())))


def test_a_function_that_cannot_be_sent_to_a_process_is_named(columns: Columns) -> None:
    @dataclass(frozen=True)
    class Own(AbstractCoordinateRule):
        def reduce(self, block: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return block[0]

    assert isinstance(Own(), AbstractRule)
    with pytest.raises(ValueError, match="Own"):
        combined(columns, Own())


@pytest.mark.parametrize(("rule", "numbers"), [(MIXED, (2, 1)), (MultiKrum(), (1, 2, 4))])
def test_one_two_and_four_processes_give_the_same_bits(
    columns: Columns, rule: Any, numbers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for most in numbers:
        monkeypatch.setattr(columns.team, "most", most)
        columns.team.resize(most)
        answers.append(combined(columns, rule))
        assert columns.team.size == most
    assert all(torch.equal(answers[0], other) for other in answers[1:])


def test_processes_that_are_killed_at_work_lose_nothing(columns: Columns, monkeypatch: pytest.MonkeyPatch) -> None:
    team, killed = columns.team, list[int]()
    team.resize(2)
    held = [columns.arrived(u) for u in ARRIVING]
    for process in team._processes:
        process.popen.send_signal(signal.SIGSTOP)  # they take shares and cannot answer
    collect = team._collect

    def kill(timeout: float) -> bool:
        if timeout and not killed:
            killed.extend(p.popen.pid for p in team._processes if p.held)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return collect(timeout)

    monkeypatch.setattr(team, "_collect", kill)
    before = team.deaths
    answer = flat(columns.combine(MultiKrum(), held, SPACE, view()))
    assert torch.equal(answer, flat(MultiKrum()(ARRIVING, SPACE, view())))
    assert len(killed) == team.deaths - before == 2


def test_a_run_has_the_bits_of_flat_aggregation_and_goes_with_layers(tmp_path: Any) -> None:
    given = ["fleet=exponential", "fleet.clients=6", "budget.epochs=null", "budget.steps=2", "workers=0"]
    given += ["stop.versions=4", "schedule=fedbuff", "schedule.size=5", "staleness=polynomial", "rule=multi_krum"]

    def row(name: str, *more: str) -> Any:
        return Experiment.of(composition.resolved(composition.compose([*given, *more]))).run(tmp_path / name).row

    apart, here = row("apart", "aggregation=hierarchical", "aggregation.eager=false"), row("here")
    assert apart["notices"] == ["aggregation=hierarchical: rule MultiKrum is carried out by columns"]
    assert apart["weights_sha256"] == here["weights_sha256"] and apart["events_sha256"] == here["events_sha256"]
