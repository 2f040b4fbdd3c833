"""Everything runs without compiled code: with no compiler, without its modules, and with it switched off.

Plain steps of a small perceptron agree to rounding then, and everything else to the bit: here steps with momentum and
sums that are large enough to be compiled.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clients.models.vision import mlp
from fedhet import native
from fedhet.config import composition
from fedhet.model.flat_model import Model
from fedhet.native import weighted_sum
from fedhet.numerics import stacking, tree
from fedhet.provenance import source_tree
from fedhet.runs.experiment import Experiment
from fedhet.runs.result import Result

COMMON = [
    "model=mlp_small", "data=synthetic", "data.samples=400", "partition=iid", "fleet=homogeneous", "fleet.clients=10",
    "schedule.per_round=10", "workers=0", "stop.versions=3", "budget=fixed", "budget.steps=4",
]  # fmt: skip
RUNS = {"plain": COMMON, "momentum": [*COMMON, "work.momentum=0.9"]}
SCRIPT = """
import json, sys
from pathlib import Path
import fedhet
from fedhet.config import composition
from fedhet.runs.experiment import Experiment
assert Path(fedhet.__file__).is_relative_to(sys.argv[1]), fedhet.__file__
for name, asked in json.loads(sys.argv[3]).items():
    Experiment.of(composition.resolved(composition.compose(asked))).run(Path(sys.argv[2]) / name)
"""
NO_COMPILER = "torch (no C compiler)"


def here(folder: Path) -> dict[str, Result]:
    """The runs in this process."""
    return {
        name: Experiment.of(composition.resolved(composition.compose(asked))).run(folder / name)
        for name, asked in RUNS.items()
    }


def process(root: Path, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The runs in a process of its own, on the code below `root`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CC", native.SWITCH)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), str(folder), json.dumps(RUNS)],
        cwd=root, env={**kept, "PYTHONPATH": str(root), **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def compare(found: dict[str, Result], expected: dict[str, Result]) -> None:
    """Momentum to the bit, plain steps to rounding."""
    assert found["momentum"].row["weights_sha256"] == expected["momentum"].row["weights_sha256"]
    mine, other = (load_file(r["plain"].path / "model.safetensors") for r in (found, expected))
    for name, leaf in other.items():
        torch.testing.assert_close(mine[name], leaf, rtol=1e-4, atol=1e-6)
    assert found["plain"].row["loss"] == pytest.approx(expected["plain"].row["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return here(tmp_path_factory.mktemp("expected"))


@pytest.fixture
def switched_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(native.SWITCH, "off")
    native._found.cache_clear()
    yield
    native._found.cache_clear()


def test_runs_without_a_compiler_and_without_the_modules_have_the_same_results(
    expected: dict[str, Result], tmp_path: Path
) -> None:
    nothing, bare = tmp_path / "nothing", tmp_path / "bare"
    nothing.mkdir()
    for part in ("fedhet", "clients", "strategies", "conf"):
        shutil.copytree(source_tree.root() / part, bare / part)
    for module in (bare / "fedhet" / "native").glob("*.py"):
        if module.name != "__init__.py":
            module.unlink()
    started = {
        "compiler": process(
            source_tree.root(), tmp_path / "compiler", PATH=str(nothing), XDG_CACHE_HOME=str(tmp_path / "cache")
        ),
        "modules": process(bare, tmp_path / "modules"),
    }
    said = {name: running.communicate(timeout=120)[1] for name, running in started.items()}
    found = {name: {run: Result.read(tmp_path / name / run) for run in RUNS} for name in started if not said[name]}
    assert set(found) == set(started), said
    assert not list(tmp_path.glob("cache/**/*.so"))
    words = {name: [runs["plain"].row[key] for key in ("mlp_backend", "sum_backend")] for name, runs in found.items()}
    assert words == {
        "compiler": [NO_COMPILER, NO_COMPILER],
        "modules": ["autograd (there is no fedhet.native.mlp_sgd)", "torch (there is no fedhet.native.weighted_sum)"],
    }
    for runs in found.values():
        compare(runs, expected)


def test_a_run_with_the_fast_paths_switched_off_has_the_same_results(
    expected: dict[str, Result], switched_off: None, tmp_path: Path
) -> None:
    found = here(tmp_path)
    assert found["plain"].row["mlp_backend"] == "autograd (switched off by FEDHET_NATIVE=off)"
    assert set(native.status().values()) == {found["plain"].row["mlp_backend"], found["plain"].row["sum_backend"]}
    compare(found, expected)


def test_every_function_declines_when_switched_off(switched_off: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted_sum, "LEAST", 1)
    model, rows = Model(mlp(input_shape=(1, 4, 4), classes=3, hidden=(5,))), [torch.ones(8), torch.ones(8)]
    assert model.perceptron is None and not native.keep_freed_memory() and native.sum_library() == ""
    assert not native.sum_into(rows, [1.0, 2.0], torch.empty(8))
    one = tree.Schema((("w", tree.Leaf((8,))),))
    assert torch.equal(
        tree.weighted_sum([tree.FlatTree(one, row) for row in rows], [1.0, 2.0])["w"], torch.full((8,), 3.0)
    )
    large = [torch.ones(600, 512), torch.ones(600, 512)]
    assert not native.stack_into(large, torch.empty(1200, 512), dim=0)
    assert torch.equal(
        stacking.stack(large, torch.empty(600, 1024), [1.0, 2.0], dim=1)[0, 511:513], torch.arange(1.0, 3.0)
    )
    loss = model.descend(torch.randn(6, 1, 4, 4), torch.randint(3, (6,)), 0.1)
    assert bool(loss.isfinite())


def test_the_switch_has_two_positions(monkeypatch: pytest.MonkeyPatch, switched_off: None) -> None:
    monkeypatch.setenv(native.SWITCH, "no")
    with pytest.raises(ValueError, match="FEDHET_NATIVE=no must be on or off"):
        native.backend("sum")


def test_the_package_is_light_to_import() -> None:
    code = "import fedhet.native, sys; assert not {'torch', 'numpy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], cwd=source_tree.root(), check=True, timeout=60)
