"""Labels of the runs of a comparison, and overrides without effect."""

from __future__ import annotations

import json

from fedhet.report.run_groups import read
from fedhet.report.run_labels import labels, variants, without_effect

RULE = "strategy: x\nseed: 1\nrule:\n  _target_: a.rules.{}\n  f: {}\nattack:\n  seed: 3\n  fraction: {}\n"


def test_another_part_is_named_by_its_class_and_not_by_all_that_it_brings():
    other = RULE.format("Krum", 2, 0.2) + "  strength: 10\n"
    assert variants([RULE.format("Mean", 1, 0.0), other]) == [
        "rule=Mean, attack.fraction=0.0",
        "rule=Krum, attack.fraction=0.2, attack.strength=10",
    ]


def test_labels_of_many_differences_are_shortened_and_unique():
    long = ["".join(f"key{k}: {'x' * 30}{k + n}\n" for k in range(9)) for n in range(3)]
    names = variants(long)
    assert len(set(names)) == 3 and max(map(len, names)) <= 125 and "configuration" not in "".join(names)


def _compared(tmp_path, fake_run, runs, digests):
    folders = [fake_run(name, seed=k) for k, name in enumerate(runs)]
    for folder, digest in zip(folders, digests, strict=True):
        row = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**row, "weights_sha256": digest}))
    (folders[0].parent / "compare.json").write_text(json.dumps({"runs": runs}))
    return folders


def test_runs_of_a_comparison_are_named_by_the_overrides_that_were_typed(fake_run, tmp_path):
    runs = {f"{rule}{seed}": [f"rule={rule}", f"seed={seed}"] for rule in ("mean", "krum") for seed in (1, 2)}
    folders = _compared(tmp_path, fake_run, runs, "abcd")
    assert labels(folders, ["fedavg"] * 4) == ["fedavg · rule=mean"] * 2 + ["fedavg · rule=krum"] * 2
    assert labels(folders[:2], ["fedavg"] * 2) == ["fedavg"] * 2
    assert without_effect(read(folders)) == []


def test_a_run_is_called_by_what_replaces_its_strategys_parts(fake_run):
    folders = [fake_run(name, seed=k) for k, name in enumerate(("plain", "one", "two"))]
    for folder, replaced in zip(folders[1:], (["rule=mine.Rule"], ["rule=krum", "work=adam"]), strict=True):
        row = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**row, "replaced": replaced}))
    name = json.loads((folders[0] / "result.json").read_text())["strategy"]
    names = [row.text("label") for row in read(folders)]
    assert names == [name, f"{name} + rule=mine.Rule", f"{name} + rule=krum + work=adam"]


def test_what_all_runs_of_a_name_have_in_common_is_not_said_again(fake_run, tmp_path):
    runs = {f"{rule}{f}": [f"rule={rule}", f"rule.f={f}"] for rule in ("krum", "bulyan") for f in (1, 2)}
    names = [f"fedavg + rule={rule}" for rule in ("krum", "krum", "bulyan", "bulyan")]
    found = labels(_compared(tmp_path, fake_run, runs, "abcd"), names)
    assert found == [f"{name} · rule.f={f}" for name, f in zip(names, (1, 2, 1, 2), strict=True)]


def test_an_option_that_changed_no_weight_is_said_to_have_had_no_effect(fake_run, tmp_path):
    runs = {f"{rule}{power}": [f"rule={rule}", f"attack.power={power}"] for rule in ("a", "b") for power in (1, 9)}
    (told,) = without_effect(read(_compared(tmp_path, fake_run, runs, ["x", "x", "y", "y"])))
    assert told.startswith("attack.power=1,9 had no effect")
    assert without_effect(read(_compared(tmp_path, fake_run, runs, ["x", "x", "y", "z"]))) == []


def test_values_that_are_one_are_named_although_another_value_is_not(fake_run, tmp_path):
    runs = {f"{late}{opt}": [f"late={late}", f"opt={opt}"] for late in ("none", "half", "pull") for opt in (1, 2)}
    (told,) = without_effect(read(_compared(tmp_path, fake_run, runs, ["x", "y", "x", "y", "z", "y"])))
    assert told.startswith("late=none,half had no effect")
