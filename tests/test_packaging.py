"""What is shipped: a wheel with one top-level name that is whole, and a Flower bundle with all it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedhet.provenance import source_tree

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel built from this checkout; no network is used."""
    out = tmp_path_factory.mktemp("wheel")
    code = (
        "import sys; from hatchling.builders.wheel import WheelBuilder as B; "
        "print(*B(sys.argv[1]).build(directory=sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(out)], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _files(*trees: str, suffix: str) -> set[str]:
    paths = (path for tree in trees for path in (ROOT / tree).rglob(f"*{suffix}"))
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def test_a_wheel_installs_the_name_fedhet_and_no_other(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"fedhet", "fedhet-0.1.0.dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_a_wheel_carries_every_module_and_every_option(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert _files("fedhet", suffix=".py") | {"fedhet/py.typed"} <= names
    inside = _files("strategies", "clients", suffix=".py") | _files("conf", suffix=".yaml")
    assert {f"fedhet/_root/{name}" for name in inside} <= names


def test_a_wheel_runs_from_an_empty_folder_with_the_code_of_the_checkout(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def fedhet(*arguments: str) -> str:
        command = [sys.executable, "-P", "-m", "fedhet", *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = fedhet("version")
    assert f"in {site / 'fedhet' / '_root'}" in told and f"code {source_tree.fingerprint()}" in told
    small = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax", "--out", "run"]
    assert fedhet("run", *small).splitlines()[-1] == "run"
    assert {"result.json", "report.html"} <= {path.name for path in (empty / "run").iterdir()}


def test_a_flower_bundle_holds_the_code_the_options_and_no_tests(tmp_path):
    command = [str(Path(sys.executable).with_name("flwr")), "build", "--app", str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = tmp_path.glob("*.fab")
    names = set(zipfile.ZipFile(bundle).namelist())
    wanted = _files("fedhet", "strategies", "clients", suffix=".py") | _files("conf", suffix=".yaml")
    assert wanted | {"pyproject.toml", "LICENSE"} <= names
    assert not [name for name in names if name.startswith(("tests/", "experiments/"))]
    assert bundle.stat().st_size < 5_000_000
