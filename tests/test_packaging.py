"""What is shipped: a wheel with one top-level name that is whole, a source archive, a Flower bundle with all it needs;
and the versions that were tested with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedhet.provenance import source_tree
from fedhet.simulation.virtual_time import RAY

ROOT = Path(__file__).resolve().parent.parent


BUILD = """
import sys
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
print(*{"sdist": SdistBuilder, "wheel": WheelBuilder}[sys.argv[1]](sys.argv[2]).build(directory=sys.argv[3]))
"""


def built(kind: str, out: Path) -> Path:
    """The path of an archive built from this checkout; no network is used."""
    command = [sys.executable, "-c", BUILD, kind, str(ROOT), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built("wheel", tmp_path_factory.mktemp("wheel"))


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


def test_a_wheel_says_what_it_is(wheel):
    archive = zipfile.ZipFile(wheel)
    told = Parser().parsestr(archive.read("fedhet-0.1.0.dist-info/METADATA").decode())
    assert (told["Name"], told["Version"], told["Requires-Python"]) == ("fedhet", "0.1.0", ">=3.11")
    assert told["License-Expression"] == "Apache-2.0" and told.get_all("License-File") == ["LICENSE"]
    assert {"Programming Language :: Python :: 3.11", "Typing :: Typed"} <= set(told.get_all("Classifier", []))
    assert b"fedhet = fedhet.cli.main:main" in archive.read("fedhet-0.1.0.dist-info/entry_points.txt")


def test_a_source_archive_holds_what_a_contributor_needs(tmp_path):
    with tarfile.open(built("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    documents = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "LICENSE"}
    assert documents | {"constraints.txt", ".pre-commit-config.yaml", ".ci/run", "fedhet/py.typed"} <= names
    assert _files("fedhet", "strategies", "clients", "tests", suffix=".py") <= names
    assert not [name for name in names if "__pycache__" in name or "_cache/" in name or name.startswith("runs/")]


def test_the_tested_set_is_within_the_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines if "==" in line)}
    extras = project["optional-dependencies"]
    asked = [Requirement(text) for text in (*project["dependencies"], *extras["test"], *extras["dev"])]
    others = [one for one in asked if one.name != "fedhet"]
    assert [str(one) for one in others if not one.specifier.contains(pins[canonicalize_name(one.name)])] == []
    flower = {one.specifier for one in others if one.name == "flwr"}
    assert flower == {Requirement(RAY.partition("'")[2].rstrip("'")).specifier}, "what a message tells to install"


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
    assert {name.partition("/")[0] for name in names if name.endswith(".md")} == {"README.md"}
    assert not [name for name in names if name.startswith(("tests/", "experiments/"))]
    assert bundle.stat().st_size < 5_000_000
