"""A class in place of an option's name, and the error for one that does not exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhet.config import composition, factory
from fedhet.errors import ConfigError
from fedhet.provenance import source_tree
from fedhet.runs import run_config

RULE = """
from dataclasses import dataclass, field
from strategies.rules.mean import Mean

@dataclass(frozen=True)
class Weighted(Mean):
    power: float = 1.0
    shape: list = field(default_factory=lambda: [1, 2])

@dataclass(frozen=True)
class Strict:
    radius: float
    def __call__(self, updates, space, view): ...

def net(input_shape, classes, width=8): ...
def useless(width=8): ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's own, new for every test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(RULE)
    (tmp_path / "conf").mkdir()
    return name


@pytest.fixture
def fedhet_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str]]:
    """A command in a new process and an empty folder; its exit code and what it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "fedhet", *arguments],
            cwd=tmp_path_factory.mktemp("elsewhere"), capture_output=True, text=True, check=False, timeout=100,
            env={**os.environ, "PYTHONPATH": str(source_tree.root())},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return call


def compose(tmp_path: Path, *texts: str) -> dict:
    return composition.resolved(composition.compose(texts, tmp_path / "conf"))


def test_a_class_takes_the_place_of_an_options_name_with_its_parameters(tmp_path: Path, own: str) -> None:
    cfg = compose(tmp_path, f"rule={own}.Weighted", "rule.power=3", "rule.uniform=true", "strategy=fedbuff")
    over = {"over": "cohort", "uniform": True, "power": 3, "shape": [1, 2]}
    assert cfg["rule"] == {"_target_": f"{own}.Weighted", **over}
    assert vars(factory.method(cfg).rule) == {**over, "power": 3}
    assert cfg["replaced"] == [f"rule={own}.Weighted"] and cfg["strategy"] == "fedbuff"
    assert compose(tmp_path, f"rule={own}.Strict", "rule.radius=2")["rule"]["radius"] == 2


def test_a_model_is_its_factory(tmp_path: Path, own: str) -> None:
    node = compose(tmp_path, f"model={own}.net", "model.width=3")["model"]
    assert node == {"_target_": f"{own}.net", "_partial_": True, "width": 3}


def test_only_what_the_strategy_does_otherwise_is_noted_as_replaced() -> None:
    def replaced(*texts: str) -> list[str]:
        return list(composition.compose(texts).replaced)

    assert replaced("strategy=krum", "rule.f=2", "seed=3", "fleet=exponential") == []
    assert replaced("rule=mean") == [], "FedAvg's own"
    assert replaced("rule=krum", "work=adam") == ["rule=krum", "work=adam"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rule=OWN.Nope", ["rule: OWN has no Nope", "it has Weighted, Strict, net"]),
        ("rule=OWN.Weighteds", ["nearest: Weighted"]),
        ("rule._target_=OWN.Nope", ["rule: OWN has no Nope", "it has Weighted"]),
        ("rule._target_=strategies.rules.krum.Crum", ["strategies.rules.krum has no Crum", "nearest: Krum"]),
        (
            "rule=OWN_b.Rule",
            ["module OWN_b cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"],
        ),
        ("rule=OWN_c.Rule", ["module OWN_c cannot be imported: SyntaxError"]),
        ("rule=no_such_module.Rule", ["there is no module 'no_such_module'", "current folder", "--config-dir"]),
        ("rule=OWN.Strict", ["rule.radius has no default: give rule.radius=VALUE"]),
        ("rule=OWN.Weighted.power", ["OWN.Weighted.power is float, no class or function"]),
        ("rule=strategies.rules", ["is module, no class"]),
        ("model=OWN.useless", ["by calling it with input_shape and classes", "(width)"]),
        ("strategy=OWN.Weighted", ["strategy sets several axes"]),
        ("rule=krumm", ["nearest: krum"]),
    ],
)
def test_what_is_not_there_is_named_with_what_there_is(tmp_path: Path, own: str, text: str, parts: list[str]) -> None:
    (tmp_path / f"{own}_b.py").write_text("import no_such_library\n")
    (tmp_path / f"{own}_c.py").write_text("def (:\n")
    with pytest.raises(ConfigError) as caught:
        factory.method(compose(tmp_path, text.replace("OWN", own)))
    for part in parts:
        assert part.replace("OWN", own) in str(caught.value), caught.value


def test_a_run_with_a_class_is_called_by_it_and_records_its_code(
    tmp_path: Path, own: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedhet.cli.main import main

    monkeypatch.chdir(tmp_path)
    small = ["debug=quick", "stop.versions=1", "fleet.clients=2", "model=mlp_small", "budget.steps=1"]
    assert main(["run", f"rule={own}.Weighted", *small]) == 0
    out = capsys.readouterr().out
    assert f"fedavg + rule={own}.Weighted, seed 0" in out
    folder = Path(out.splitlines()[-1])
    assert folder.name.startswith(f"fedavg+rule={own}.Weighted-seed0-")
    row = json.loads((folder / "result.json").read_text())
    assert row["strategy"] == "fedavg" and list(row["plugins"]) == [own]
    assert f"<h1>fedavg + rule={own}.Weighted</h1>" in (folder / "report.html").read_text()


def test_a_resumed_run_finds_its_plug_ins_next_to_the_folder_of_options(
    tmp_path: Path, own: str, fedhet_elsewhere: Callable[..., tuple[int, str]]
) -> None:
    resolved = compose(tmp_path, f"rule={own}.Weighted", "debug=quick", "stop.versions=1", "fleet.clients=2")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(run_config.text({**resolved, "workers": 0}))
    code, told = fedhet_elsewhere("run", "--resume", str(run))
    assert code == 2 and f"module {own} is not found: run from the folder that it lies in, give --config-dir" in told
    code, told = fedhet_elsewhere("run", "--resume", str(run), "--config-dir", str(tmp_path / "conf"))
    assert code == 0, told
