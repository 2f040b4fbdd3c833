"""`fedhet compare`, `fedhet demo` and `--multirun`: many runs, one table."""

from __future__ import annotations

import json
from pathlib import Path

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax"]


def test_a_comparison_runs_the_product_and_keeps_what_is_finished(fedhet):
    asked = [*QUICK, "strategy=fedavg,fedbuff", "seed=1,2", "target=0.1"]
    code, out, err = fedhet("compare", *asked, "--out", "both")
    assert code == 0, err
    assert out.splitlines()[-1] == "both"
    assert "fedavg" in out and "fedbuff" in out and "ratio" in out
    names = {f"strategy={s},seed={n}" for s in ("fedavg", "fedbuff") for n in (1, 2)}
    assert {p.name for p in Path("both").iterdir() if p.is_dir()} == names
    assert Path("both/comparison.html").stat().st_size > 1000
    stamps = {p: p.stat().st_mtime_ns for p in Path("both").glob("*/result.json")}

    code, out, err = fedhet("compare", "--resume", "both", "--json")
    assert code == 0 and err.count("finished before, kept") == 4
    assert {p: p.stat().st_mtime_ns for p in Path("both").glob("*/result.json")} == stamps
    rows = json.loads(out)
    assert [(row["strategy"], row["runs"], sorted(row["seeds"])) for row in rows] == [
        ("fedavg", 2, [1, 2]),
        ("fedbuff", 2, [1, 2]),
    ]

    code, _, err = fedhet("compare", *asked, "work.lr=0.5", "--out", "both")
    assert code == 2 and "another configuration" in err
    assert {p: p.stat().st_mtime_ns for p in Path("both").glob("*/result.json")} == stamps


def test_a_comparison_gives_every_method_equally_many_tasks_unless_told_where_to_stop():
    from fedhet.cli.compare import plan

    def ends(*texts):
        return {tuple(p.resolved["stop"][name] for name in ("versions", "seconds", "tasks")) for p in plan(texts, None)}

    assert ends("strategy=fedavg,fedasync") == {(None, None, 720)}
    assert ends("seed=1,2", "stop.seconds=5.0") == {(60, 5.0, None)}
    assert ends("stop.versions=60") == {(60, None, None)}
    assert ends("debug=quick") == {(3, None, None)}


def test_a_comparison_goes_on_after_a_run_that_failed(fedhet, monkeypatch):
    from fedhet.runs import runner

    real = runner.start

    def sometimes(prepared, out, **more):
        if prepared.resolved["seed"] == 1:
            out.mkdir(parents=True)
            (out / "config.yaml").write_text("seed: 1\n")
            raise RuntimeError("the first one breaks")
        return real(prepared, out, **more)

    monkeypatch.setattr(runner, "start", sometimes)
    code, out, err = fedhet("compare", *QUICK, "seed=1,2", "--out", "some")
    assert code == 1
    assert "the first one breaks" in err and "1 of 2 runs failed: seed=1" in err
    assert out.splitlines()[-1] == "some" and Path("some/seed=2/result.json").exists()


def test_the_demo_is_a_comparison_that_can_be_changed(fedhet):
    code, _, err = fedhet("demo", *QUICK, "strategy=fedbuff", "stop.seconds=null", "stop.versions=2", "--out", "demo")
    assert code == 0, err
    asked = json.loads(Path("demo/compare.json").read_text())["overrides"]
    assert "data=digits" in asked and "strategy=fedbuff" in asked and "stop.seconds=60" not in asked
    assert json.loads(Path("demo/run/result.json").read_text())["versions"] == 2


def test_multirun_sweeps_by_hydra_and_ends_with_a_table(fedhet):
    code, out, err = fedhet("run", "--multirun", *QUICK, "seed=1,2", "--out", "sweep")
    assert code == 0, err
    assert out.splitlines()[-1] == "sweep"
    assert sorted(p.parent.name for p in Path("sweep").glob("*/result.json")) == ["0", "1"]
    assert [json.loads(Path(f"sweep/{n}/result.json").read_text())["seed"] for n in (0, 1)] == [1, 2]
    assert Path("sweep/comparison.html").exists()
