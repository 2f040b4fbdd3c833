"""`fedhet run --multirun`: its folders, its report of failed runs, and resuming it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedhet.cli.progress import Bar

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax", "stop.versions=1"]


def test_a_sweep_lies_below_out_and_says_in_one_line_which_of_its_runs_failed(fedhet):
    code, out, err = fedhet("run", "--multirun", *QUICK, "fleet.dropout_prob=0.0,1.0,1e-9", "out=swept")
    assert code == 1
    (where,) = Path("swept").iterdir()
    assert out.splitlines()[-1] == str(where) and not Path("runs").exists()
    failed = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(failed) == 2 and "Traceback" not in err
    assert failed[0].startswith("error: 1 (") and f"{where}/1: " in failed[0]
    assert failed[1] == "error: 1 of 3 runs failed: fleet.dropout_prob=1.0"
    assert [(where / str(k) / "result.json").is_file() for k in range(3)] == [True, False, True]
    assert "fedavg · fleet.dropout_prob=0" in out and "fedavg · fleet.dropout_prob=1e-09" in out


def test_what_steers_a_display_is_spelled_out_in_what_a_failed_run_says(fedhet):
    code, _, err = fedhet("run", "--multirun", *QUICK, "seed=1", "fleet.dropout_prob=1.0", "--out", "mine\x1b[2J")
    assert code == 1 and "error: 0 (" in err and "mine\\x1b[2J/0: " in err and "\x1b" not in err


@pytest.mark.parametrize("told", [["--out", "mine"], ["hydra.sweep.dir=mine"]])
def test_a_sweep_uses_the_given_folder_and_keeps_finished_runs(fedhet, told):
    assert fedhet("run", "--multirun", *QUICK, "seed=1,2", *told)[0] == 0
    before = {k: Path(f"mine/{k}/events.jsonl").stat().st_mtime_ns for k in (0, 1)}
    code, out, err = fedhet("run", "--multirun", "--resume", "mine", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["seeds"] == [1, 2]
    assert before == {k: Path(f"mine/{k}/events.jsonl").stat().st_mtime_ns for k in (0, 1)}
    code, _, err = fedhet("run", "--multirun", *QUICK, "seed=1,3", *told)
    assert code == 2 and "mine contains a sweep of other overrides" in err


def test_an_interrupted_sweep_says_how_to_go_on_and_does(fedhet, monkeypatch):
    plain = Bar.__call__

    def interrupt(self, row):
        plain(self, row)
        if self.name == "1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bar, "__call__", interrupt)
        code, _, err = fedhet("run", "--multirun", *QUICK, "seed=1,2", "--out", "mine")
    assert code == 130 and "continue with: fedhet run --multirun --resume mine" in err
    assert Path("mine/0/result.json").is_file() and not Path("mine/1/result.json").exists()
    code, out, err = fedhet("run", "--multirun", "--resume", "mine", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["runs"] == 2


def test_a_single_run_uses_hydras_folder_and_refuses_its_other_settings(fedhet):
    code, out, _ = fedhet("run", *QUICK, "hydra.run.dir=mine")
    assert code == 0 and out.splitlines()[-1] == "mine"
    code, _, err = fedhet("run", *QUICK, "hydra.verbose=true")
    assert code == 2 and "hydra.verbose=true" in err and "no effect" in err
