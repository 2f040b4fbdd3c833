"""`stop.target`: the first evaluation that reaches it ends the run, and the most accurate version is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedhet.engine.stopping import Limits
from fedhet.runs.event_log import read_rows

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax", "stop.versions=12", "seed=3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a target: its accuracies by version."""
    from fedhet.config import composition
    from fedhet.runs import runner

    out = tmp_path_factory.mktemp("whole") / "run"
    runner.run(composition.compose(QUICK), out)
    return [row["accuracy"] for row in read_rows(out / "metrics.jsonl")]


def test_a_run_ends_with_the_first_evaluation_at_the_target(fedhet, whole):
    target = sorted(set(whole))[len(set(whole)) // 2]
    first = next(k for k, accuracy in enumerate(whole) if accuracy >= target)
    code, out, err = fedhet("run", *QUICK, f"stop.target={target}", "--out", "one", "--json")
    row = json.loads(out)
    assert code == 0, err
    assert (row["versions"], row["accuracy"], row["stopped"]) == (first, whole[first], f"target {target:g}")
    assert row["best"] == {"version": first, "accuracy": whole[first]}
    assert not list(Path("one").glob("best*"))  # the last version is the best


def test_the_most_accurate_version_is_kept_and_survives_a_kill(fedhet, whole, monkeypatch):
    from fedhet.runs import session

    best = next(k for k in range(len(whole) - 1) if max(whole[: k + 2]) == whole[k] and whole[k] not in whole[:k])
    more = ["evaluate.keep_best=true", "checkpoint.every_seconds=0.0", f"stop.versions={best + 1}"]
    code, out, err = fedhet("run", *QUICK, *more, "--out", "one", "--json")
    assert code == 0, err
    row = json.loads(out)
    assert row["best"] == {"version": best, "accuracy": whole[best]}
    kept = load_file("one/best.safetensors")

    def die(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # killed when all is trained, before the result is written
        patched.setattr(session.Session, "_finish", die)
        assert fedhet("run", *QUICK, *more, "--out", "two")[0] == 130
    assert fedhet("run", "--resume", "two")[0] == 0
    again = load_file("two/best.safetensors")
    assert kept.keys() == again.keys() and all((kept[k] == again[k]).all() for k in kept)
    assert [p.name for p in Path("two").glob("best*")] == ["best.safetensors"]


def test_a_target_alone_may_never_be_reached(fedhet):
    with pytest.raises(ValueError, match="a run needs an end"):
        Limits(target=0.5)
    with pytest.raises(ValueError, match=r"target=1\.5"):
        Limits(versions=1, target=1.5)
    code, _, err = fedhet("run", "target=90")
    assert code == 2 and "target=90" in err and "did you mean 0.9?" in err
