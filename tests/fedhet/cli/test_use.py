"""Commands on finished runs: scores on the run's data and on others, and refused input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from fedhet.cli import main
from fedhet.provenance import source_tree
from fedhet.runs.result import row_digest
from fedhet.system.atomic_file import digest

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a linear model on the digits."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main.main(["run", *QUICK, "--out", str(out)]) == 0
    return out


@pytest.fixture
def fedhet(capsys):
    def call(*arguments) -> tuple[int, str, str]:
        code = main.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_on_the_runs_own_data_the_scores_are_those_of_its_end(fedhet, run):
    row = json.loads((run / "result.json").read_text())
    code, out, err = fedhet("evaluate", run, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert all(told[k] == row[k] for k in ("accuracy", "loss", "worst_decile_accuracy"))
    assert told["data"] == "digits"


def test_the_command_evaluates_in_a_process_of_its_own(run):
    command = [sys.executable, "-m", "fedhet", "evaluate", str(run)]
    done = subprocess.run(command, cwd=source_tree.root(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and "digits" in done.stdout


def test_other_data_give_other_scores_and_the_table_shows_both(fedhet, run):
    data = ["data=synthetic", "data.shape=[1,8,8]", "data.samples=300"]
    code, out, _ = fedhet("evaluate", run, *data, "--json")
    row = json.loads((run / "result.json").read_text())
    assert code == 0 and json.loads(out)["data"] == "synthetic"
    assert json.loads(out)["accuracy"] < 0.5 < row["accuracy"]
    code, out, _ = fedhet("evaluate", run, *data)
    assert code == 0 and f"{row['accuracy']:.2%}" in out and "synthetic" in out


def test_a_value_of_the_runs_own_axis_keeps_the_rest_of_it(fedhet, run):
    code, out, _ = fedhet("evaluate", run, "partition.alpha=100.0", "--json")
    row = json.loads((run / "result.json").read_text())
    assert code == 0 and json.loads(out)["accuracy"] == row["accuracy"]
    assert json.loads(out)["worst_decile_accuracy"] != row["worst_decile_accuracy"]


def replace_weights(folder, weights):
    """Other weights, as if the run had written them."""
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    row = json.loads((folder / "result.json").read_text())
    row["model_sha256"] = digest(folder / "model.safetensors")
    (folder / "result.json").write_text(json.dumps({**row, "sha256": row_digest(row)}))


def test_the_weights_of_the_folder_are_what_is_scored(fedhet, run, tmp_path):
    other = tmp_path / "zeroed"
    shutil.copytree(run, other)
    weights = {k: torch.zeros_like(v) for k, v in safetensors.torch.load_file(run / "model.safetensors").items()}
    replace_weights(other, weights)
    _, out, _ = fedhet("evaluate", other, "--json")
    assert json.loads(out)["loss"] == pytest.approx(torch.tensor(10.0).log().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        (["data=mnst"], ["data=mnst", "nearest: mnist"]),
        (["data=mnist"], ["data.path="]),
        (["model=mlp"], ["model=mlp", "data and partition"]),
        (["data.cash=x"], ["data.cash", "nearest: data.cache"]),
        (["partition.alpha=much"], ["partition.alpha=much", "number"]),
        (["data=synthetic"], ["1.weight", "(10, 64)", "(10, 784)"]),
        (["data=synthetic", "data.shape=[1,8,8]", "data.classes=4"], ["(10, 64)", "(4, 64)"]),
    ],
)
def test_what_does_not_fit_is_bad_input_and_named(fedhet, run, texts, parts):
    code, out, err = fedhet("evaluate", run, *texts)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_a_folder_without_a_finished_run_is_bad_input(fedhet, run, tmp_path):
    code, _, err = fedhet("evaluate", tmp_path)
    assert code == 2 and "no result.json" in err
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "model.safetensors").write_bytes(b"no tensors")
    code, _, err = fedhet("evaluate", broken)
    assert code == 2 and "model.safetensors is not what the run wrote" in err


def test_a_model_with_other_tensors_is_refused(fedhet, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    weights = safetensors.torch.load_file(run / "model.safetensors")
    replace_weights(other, {**weights, "more.weight": torch.zeros(1)})
    code, _, err = fedhet("evaluate", other)
    assert code == 2 and "more.weight" in err


def test_a_fleet_shows_the_ranks_a_budget_gives(fedhet):
    asked = ["strategy=flora", "budget=by_memory", "space.rank=64", "model.hidden=[64]", "fleet.clients=12"]
    code, out, err = fedhet("fleet", "show", *asked, "budget.base_bytes=1.98e9", "budget.bytes_per_parameter=3.0e4")
    assert (code, err) == (0, "") and " rank" in out and "memory" in out
    rank = {line.split()[1]: line.split() for line in out.splitlines() if line.strip()[:1].isdigit()}
    assert "64" in rank["rack-1"] and "0" in rank["phone-old"] and "2" in rank["edge-box-1"]
