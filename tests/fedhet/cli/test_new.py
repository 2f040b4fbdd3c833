"""`fedhet new` writes plug-ins that run and pass their tests, and refuses invalid names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedhet.cli import new
from fedhet.provenance import source_tree

QUICK = ["debug=quick", "stop.versions=2", "fleet=homogeneous", "fleet.clients=3", "budget.steps=2"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plug-in of every kind; the names are those of no other module."""
    folder = tmp_path_factory.mktemp("own")
    for kind in new.AXES:
        new.new(kind, f"made_{kind}", folder)
    return folder


def test_what_is_written_passes_its_own_test(own: Path) -> None:
    tests = sorted(path.name for path in own.glob("test_*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=own, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(new.AXES)} passed" in done.stdout


def test_what_is_written_runs_from_there_and_from_elsewhere(own: Path, fedhet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    chosen = [f"{axis}=made_{kind}" for kind, axis in new.AXES.items()]
    code, out, err = fedhet("run", "--config-dir", str(own / "conf"), *chosen, *QUICK, "work.lr=0.05", "--out", "run")
    assert code == 0, err
    assert "fedavg + schedule=made_schedule + space=made_space + rule=made_rule" in out
    assert "/4: version 2" in err, "the transport's own lines"
    config = Path("run/config.yaml").read_text()
    assert all(f"  made_{kind}: " in config for kind in new.AXES), "every module has its hash"
    code, out, _ = fedhet("list", "rule", "--config-dir", str(own / "conf"))
    assert "made_rule" in out and "A mean in which no update is longer" in out


def test_what_is_written_is_clean(own: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "120", "--select", "E,F,UP,B,SIM", "."],
        cwd=own, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_nothing_is_overwritten(fedhet, tmp_path: Path) -> None:
    code, out, _ = fedhet("new", "rule", "halves", "--into", "mine")
    assert code == 0 and out.splitlines()[:3] == [
        "mine/halves.py", "mine/conf/rule/halves.yaml", "mine/test_halves.py"
    ]  # fmt: skip
    assert "next: cd mine && fedhet run --config-dir conf rule=halves debug=quick" in out
    before = {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    code, _, err = fedhet("new", "rule", "halves", "--into", "mine")
    assert code == 2 and "'halves' is an option of rule already (nearest: my_halves)" in err
    code, _, err = fedhet("new", "space", "halves", "--into", "mine")
    assert code == 2 and "would overwrite or hide mine/halves.py" in err
    assert {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("rule", "my-rule", "'my-rule' is no name for a Python module"),
        ("rule", "my-rule", "letters, digits and _, not beginning with a digit (nearest: my_rule)"),
        ("rule", "2krum", "(nearest: my_2krum)"),
        ("rule", "", "is no name for a Python module"),
        ("rule", "../evil", "(nearest: evil)"),
        ("rule", "class", "'class' is a word of Python's own (nearest: my_class)"),
        ("rule", "krum", "'krum' is an option of rule already (nearest: my_krum)"),
        ("transform", "none", "'none' is an option of codec already"),
        ("data", "random", "'random' is another module, which `import` would find instead (nearest: my_random)"),
        ("model", "torch", "(nearest: my_torch)"),
        ("model", "conftest", "is another module"),
        ("rule", "null", "is a value and no text in rule=null (nearest: my_null)"),
        ("rule", "_", "leaves no name for a class"),
        ("rules", "x", "there is rule, schedule, space, transform, work, model, data, transport (nearest: rule)"),
    ],
)  # fmt: skip
def test_the_error_for_an_invalid_name_has_a_valid_one(fedhet, kind: str, name: str, told: str) -> None:
    code, _, err = fedhet("new", kind, name)
    assert code == 2 and told in err, err
    assert list(Path().iterdir()) == []


def test_help_names_every_kind(fedhet) -> None:
    _, out, _ = fedhet("new", "--help")
    assert all(kind in out for kind in new.AXES)


def test_a_class_has_another_name_than_what_its_file_imports(tmp_path: Path) -> None:
    new.new("rule", "update", tmp_path)
    assert "class UpdateRule(" in (tmp_path / "update.py").read_text()


def test_templates_are_installed_with_the_package() -> None:
    assert {path.name for path in new.TEMPLATES.iterdir()} == {
        "test.py.txt", *(f"{kind}.{end}.txt" for kind in new.AXES for end in ("py", "yaml"))
    }  # fmt: skip
    assert new.TEMPLATES.is_relative_to(source_tree.root())
