"""Published methods by name, on fedhet's models, through the full platform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedhet.config import composition, factory
from fedhet.engine.method import Misfit
from fedhet.engine.server import Server
from fedhet.engine.stopping import Limits
from fedhet.model.flat_model import Model
from fedhet.population.roster import Clients
from fedhet.provenance import source_tree
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.types import Budget, Job
from strategies.budgets.by_memory import ByMemory

FLEET = ("fleet=homogeneous", "fleet.clients=4", "fleet.sec_per_step=0.01", "partition=iid", "workers=0")
STEPS = ("budget.epochs=null", "budget.steps=10", "work.batch=16")


ADAPTERS = [p.stem for p in (source_tree.conf() / "space").glob("*.yaml") if "\nrank: " in p.read_text()]
WITH_RANKS = sorted(
    path.stem
    for path in (source_tree.conf() / "strategy").glob("*.yaml")
    if any(f"override /space: {space}\n" in path.read_text() for space in ADAPTERS)
)
"""Published methods whose space has adapters."""


def experiment(*given: str) -> Experiment:
    return Experiment.of(composition.resolved(composition.compose([*FLEET, *STEPS, *given])))


def curve(folder: Path) -> list[dict[str, Any]]:
    return list(read_rows(folder / "metrics.jsonl"))


@pytest.mark.parametrize("method", ["flora", "exact_warm"])
def test_a_perceptron_learns_digits_through_its_adapters(tmp_path: Path, method: str) -> None:
    experiment(f"strategy={method}", "model=mlp_small", "data=digits", "stop.versions=5").run(tmp_path / "run")
    rows = curve(tmp_path / "run")
    assert rows[0]["accuracy"] < 0.3 and rows[-1]["accuracy"] > 0.6
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]


def test_a_character_transformer_learns_through_its_adapters(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        table = pa.table({"text": ["the cat sat on the mat and the rat sat on the hat. " * 8] * 12})
        pq.write_table(table, tmp_path / "data" / f"{split}-0.parquet")
    data = ("data=characters", f"data.path={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}", "data.length=16")
    model = ("model=char_transformer", "model.width=16", "model.heads=2", "model.depth=1")
    experiment("strategy=flora", *data, *model, "stop.versions=5", "work.lr=0.03").run(tmp_path / "run")
    rows = curve(tmp_path / "run")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_stacks_are_combined_late_too(tmp_path: Path) -> None:
    """Buffered asynchronous: answers of several versions in one stack, clients that missed some in between."""
    method = ("strategy=fedbuff", "schedule.size=2", "space=stacked_lora", "work=adam", "work.lr=0.01")
    row = experiment(*method, "model=mlp_small", "data=digits", "stop.versions=12").run(tmp_path / "run").row
    rows = curve(tmp_path / "run")
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"] and row["updates"]["failed"] == {}


@pytest.mark.parametrize("method", ["flora", "hetlora space.decay=0.5 space.penalty=1"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path: Path, method: str) -> None:
    given = (
        *f"strategy={method}".split(),
        "model=mlp_small",
        "data=digits",
        "stop.versions=4",
        "checkpoint.every_seconds=0.0",
    )
    whole = experiment(*given).run(tmp_path / "whole").row

    class CutError(Exception):
        pass

    def stop(row: Any) -> None:
        if row["version"] >= 2:
            raise CutError

    with pytest.raises(CutError):
        experiment(*given).run(tmp_path / "run", progress=stop)
    again = experiment(*given).run(tmp_path / "run", resume=True).row
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert (again["bytes_up"], again["bytes_down"]) == (whole["bytes_up"], whole["bytes_down"])
    ranks = [row["rank"] for row in read_rows(tmp_path / "run" / "events.jsonl") if row["event"] == "assign"]
    assert ranks[0] == 0 and (ranks[-1] > 0) == ("hetlora" in method), "ranks that clients told outlive a restart"


@pytest.mark.parametrize("method", WITH_RANKS)
def test_budgets_of_ranks_and_adapters_go_together_as_they_are(method: str) -> None:
    assert len(WITH_RANKS) >= 9
    for given in ("budget=by_memory", "budget=by_time", "budget=by_time space.rank=3"):
        parts = factory.method(composition.resolved(composition.compose([f"strategy={method}", *given.split()])))
        state = parts.space.begin(Model(nn.Linear(6, 10)))
        clients = Clients.from_columns(2, {"sec_per_step": 0.1}).with_examples(np.array([5, 5]))
        server = Server(parts, state, clients, Limits(versions=1), 0, lambda t, name, fields: None)
        server.start()
        rank = 3 if "rank" in given else 8
        assert [send.job.budget.rank for send in server.settle(0.0)] == [rank, rank]


def test_a_budget_of_memory_counts_the_rows_that_a_device_holds() -> None:
    given = ["strategy=flora_sampled", "budget=by_memory", "space.rank=2", "budget.base_bytes=0", "budget.batch=1"]
    parts = factory.method(composition.resolved(composition.compose(given)))
    model, job = Model(nn.Linear(30, 20)), Job(0, 0, 0, 0, Budget(1, 2), 0.0)
    parts.space.install(model, parts.space.offer(parts.space.begin(Model(nn.Linear(30, 20))), job), job)
    panel = model.module.panel
    aside = sum(rows.aside_a.numel() + rows.aside_b.numel() for rows in panel.follower.layers.values())
    held = 16 * panel.flat.numel() + 4 * aside + 4 * 1 * 4 * 2  # two factors keep four values of four bytes each
    assert isinstance(parts.budget, ByMemory)
    for memory, rank in ((held, 2), (held - 1, 1)):
        server = Server(
            parts,
            parts.space.begin(Model(nn.Linear(30, 20))),
            Clients.from_columns(1, {"sec_per_step": 1.0, "memory_bytes": memory}).with_examples(np.array([5])),
            Limits(versions=1),
            0,
            lambda t, name, fields: None,
        )
        assert parts.budget.rank(0, server) == rank


def test_a_rank_above_the_adapters_is_refused_with_both_keys(tmp_path: Path) -> None:
    given = ("strategy=flora", "budget=by_memory", "budget.max_rank=16", "model=mlp_small", "data=digits")
    with pytest.raises(Misfit, match=r"rank 16, above space.rank=8: set space.rank=16, or .*budget.max_rank"):
        experiment(*given, "stop.versions=1").run(tmp_path / "run")
