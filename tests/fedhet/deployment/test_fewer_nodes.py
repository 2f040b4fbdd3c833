"""A live run on a grid that has fewer nodes, or others, than the configured fleet has clients."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedhet.deployment.live_run import live
from fedhet.flower.compat import claim_identity
from fedhet.runs.event_log import read_rows
from fedhet.world import Scores
from strategies.schedules.sync import Sync

found = importlib.util.spec_from_file_location("small_grid", Path(__file__).parents[1] / "small_grid.py")
small = importlib.util.module_from_spec(found)
found.loader.exec_module(small)


class Ranked(small.QuadraticWorld):
    """Client i sees an accuracy of (i + 1) / 10."""

    def evaluate(self, model):
        return replace(super().evaluate(model), clients=np.arange(1, 5) / 10)


WORLD = Ranked([1.0, 2.0, 0.5, 1.5], np.arange(8.0).reshape(4, 2), [10, 20, 30, 40])


@pytest.fixture
def run(tmp_path):
    def run(nodes):
        """A run on nodes with these numbers: its result, its messages and its events."""
        claim_identity(1)
        e = replace(small.experiment(Sync(), versions=2), world=WORLD)
        contexts = {10 + n: c for n, c in zip(nodes, small.contexts(tmp_path).values(), strict=False)}
        for number, context in zip(nodes, contexts.values(), strict=True):
            context.node_config["partition-id"] = number
        grid = small.SmallGrid(small.counting_app(e, []), contexts)
        folder = tmp_path / "run"
        row = live(e, folder, grid, wanted=len([n for n in nodes if n < 4]), poll=1e-4).row
        messages = folder / "messages.jsonl"
        said = [r["text"] for r in read_rows(messages)] if messages.exists() else []
        return row, said, read_rows(folder / "events.jsonl"), read_rows(folder / "metrics.jsonl")

    return run


def test_absent_clients_are_reported_and_not_counted(run):
    row, said, events, metrics = run([2, 3])
    assert any(text.startswith("2 of fleet.clients=4 clients are here; the others count nowhere") for text in said)
    assert row["clients"] == 2 and row["worst_decile_accuracy"] == pytest.approx(0.3)
    assert [m["worst_decile_accuracy"] for m in metrics] == pytest.approx([0.3] * len(metrics))
    assert next(e for e in events if e["event"] == "started")["clients"] == 2
    assert {e["client"] for e in events if e["event"] == "arrived"} == {2, 3}
    assert any("2 of fleet.clients=4 clients took part" in text for text in row["notices"])


def test_a_complete_fleet_is_not_reported(run):
    row, said, _, _ = run([0, 1, 2, 3])
    assert said == [] and row["notices"] == [] and row["clients"] == 4
    assert row["worst_decile_accuracy"] == pytest.approx(0.1)


def test_nodes_beyond_the_fleet_are_reported(run):
    row, said, _, _ = run([0, 1, 2, 7])
    assert any("1 nodes get no work: their numbers (7) are not below fleet.clients=4" in text for text in said)
    assert row["clients"] == 3


def test_scores_without_some_clients_know_nothing_of_them():
    scores = Scores(0.5, 1.0, np.broadcast_to(np.float64(0.5), (3,)))
    assert scores.without([]) is scores
    assert np.isnan(scores.without([1]).clients).tolist() == [False, True, False]
    assert scores.without({0, 1, 2}).worst_decile != scores.worst_decile
