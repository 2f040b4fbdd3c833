"""Errors found before a run: exit code 2, one sentence, no folder."""

import random
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from fedhet.config import composition
from fedhet.engine.method import Misfit
from fedhet.runs import rehearsal, runner
from fedhet.runs.experiment import Experiment

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=5", "model=softmax", "workers=0", "stop.versions=1"]


class Hoarder(nn.Module):
    """Keeps something between jobs where nobody can put it back."""

    seen: ClassVar[list[int]] = [0]

    def __init__(self, width, classes):
        super().__init__()
        self.layer = nn.Linear(width, classes)

    def forward(self, x):
        self.seen[0] += self.training
        return self.layer(x.flatten(1)) * (1 + 1 / self.seen[0] if self.training else 1)


def hoarder(*, input_shape, classes):
    return Hoarder(int(np.prod(input_shape)), classes)


def mixed(*, input_shape, classes):
    module = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), classes))
    module.register_buffer("scale", torch.ones(classes, dtype=torch.float64))
    return module


def one_logit(*, input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 1), nn.Flatten(0))


def column(*, input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 1))


def few_classes(*, input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), classes - 1))


def other_shape(*, input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(17, classes))


def statistics(*, input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.BatchNorm1d(8), nn.Linear(8, classes))


def last_statistics(*, input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes), nn.BatchNorm1d(classes, affine=False))


def own(factory):
    return ["model._target_=" + f"{__name__}.{factory.__name__}"]


REFUSED = {
    "mixed dtypes": (own(mixed), ["mixed", "buffer scale is float64", "module.to(torch.float32)"]),
    "one logit": (own(one_logit), ["one_logit", "shape (2,)", "cross-entropy", "every class"]),
    "one logit, as a column": (own(column), ["shape (2, 1)", "every class"]),
    "labels above the outputs": (own(few_classes), ["shape (2, 9)", "(2, 10)"]),
    "a shape the model refuses": (own(other_shape), ["other_shape", "RuntimeError", "64"]),
    "state between jobs": (own(hoarder), ["hoarder", "same job gives another result", "buffers"]),
    "batches of one with batch statistics": (
        [*own(statistics), "work.batch=1"], ["statistics", "more than 1 value", "raise work.batch"],
    ),
    "layers without parameters last": (
        [*own(last_statistics), "space=last_layers", "budget=fixed", "budget.width=0.5"],
        ["width=0.5 trains no parameter", "LastLayers"],
    ),
    "control without its work": (["space=control"], ["ControlVariates", "work=scaffold"]),
    "a rule for more updates": (["rule=krum", "rule.f=2"], ["rule.f=2", "Krum", "7 updates", "Sync combines 5"]),
    "a rule for more than the buffer": (
        ["schedule=fedbuff", "schedule.size=4", "rule=krum", "rule.f=1"], ["rule.f=1", "FedBuff combines 4"],
    ),
    "a rule for more than the fleet, in groups of any size": (
        ["schedule=fedcompass", "rule=krum", "rule.f=50"], ["rule.f=50", "103 updates", "at most 5"],
    ),
    "the same at fixed times": (["schedule=fedfix", "rule=trimmed_mean", "rule.f=3"], ["rule.f=3", "7 updates"]),
    "the same in windows": (
        ["schedule=time_window", "rule=multi_krum", "rule.keep=9"], ["rule.keep=9", "has 5 updates", "TimeWindow"],
    ),
    "the same in front of a rule": (
        ["schedule=fedcompass", "rule=nnm", "rule.before.nnm.f=4", "rule.rule.f=0.2"],
        ["rule.before.nnm.f=4", "9 updates", "there are 5"],
    ),
    "a trusted client that there is not": (
        ["schedule=fedcompass", "rule=monna", "rule.pivot=40"], ["rule.pivot=40", "has no update of its own"],
    ),
    "a gate that nobody passes": (["gate.max_norm=1e-9"], ["rejected: norm"]),
    "an unreachable cluster": (
        ["transport=cluster", "transport.address=127.0.0.1:1"], ["transport.address=127.0.0.1:1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(fedhet, case):
    given, parts = REFUSED[case]
    code, out, err = fedhet("run", *QUICK, *given, "--out", "run")
    assert code == 2 and out == "" and len(err.splitlines()) == 1, err
    assert all(part in err for part in parts), err
    assert not Path("run").exists() and not Path("runs").exists()


@pytest.mark.parametrize("command", [["compare"], ["run", "--multirun"]])
def test_all_of_several_runs_are_rehearsed_before_the_first_begins(fedhet, command):
    code, _, err = fedhet(*command, *QUICK, "gate.max_norm=1e15,1e-9")
    assert code == 2 and "rejected: norm" in err
    assert not Path("runs").exists()


def test_labels_that_are_no_classes_are_named():
    world = Experiment.of(composition.resolved(composition.compose(QUICK))).world
    model = world.model()
    world.check(model)
    for split in ("train", "test"):
        labels = getattr(world.dataset, f"y_{split}")
        kept = labels.clone()
        for wrong in (-1, 10):
            labels[3] = wrong
            with pytest.raises(ValueError, match=rf"the {split} labels go from .*{wrong}.*there are 10 classes"):
                world.check(model)
        labels.copy_(kept)


def test_the_error_for_a_model_too_large_for_the_machine_has_the_sizes(monkeypatch):
    monkeypatch.setattr(rehearsal.os, "sysconf", lambda name: 64)
    with pytest.raises(Misfit, match=r"this machine has 4,096: lower workers"):
        runner.prepare(composition.compose(QUICK))


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedbuff"])
def test_a_rehearsal_changes_no_bit_and_no_stream(tmp_path, strategy):
    cfg = composition.resolved(composition.compose([*QUICK, f"strategy={strategy}"]))
    plain = Experiment.of(cfg).run(tmp_path / "plain").row
    rehearsed = Experiment.of(cfg)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    rehearsed.check()
    rehearsed.check()
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    row = rehearsed.run(tmp_path / "rehearsed").row
    assert all(row[key] == plain[key] for key in ("weights_sha256", "events_sha256", "metrics_sha256"))


def test_a_rehearsal_of_a_small_model_takes_no_time_to_speak_of():
    """Twenty milliseconds on an idle machine; the bound leaves room for a busy one."""
    experiment = Experiment.of(composition.resolved(composition.compose(QUICK)))
    experiment.check()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        experiment.check()
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.2


def test_a_resumed_run_is_not_rehearsed(tmp_path, monkeypatch):
    runner.run(composition.compose(QUICK), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr(rehearsal, "rehearse", lambda experiment: pytest.fail("rehearsed again"))
    runner.resume(tmp_path / "run")
