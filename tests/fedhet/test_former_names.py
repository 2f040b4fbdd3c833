"""Former names of modules, classes, options, keys and in a run folder still work."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedhet import former_names
from fedhet.bases import AbstractDense
from fedhet.config import composition
from fedhet.former_names import FormerName
from fedhet.provenance import source_tree
from fedhet.runs.result import Result

RUN = Path(__file__).parent / "runs" / "former_run"
"""Written by 0.1.0 of 1 December 2026: fleet=unlike, gate.clones, a transport by name, `flight` events."""


@pytest.fixture
def folder(tmp_path):
    return str(shutil.copytree(RUN, tmp_path / "run"))


@pytest.mark.parametrize("former", sorted(former_names.MODULES))
def test_every_former_module_is_the_present_one_and_says_so(former):
    name, now = f"fedhet.{former}", f"fedhet.{former_names.MODULES[former]}"
    sys.modules.pop(name, None)
    with pytest.warns(FormerName, match=f"{name} is now {now}"):
        assert importlib.import_module(name) is importlib.import_module(now)


@pytest.mark.parametrize("package", sorted(former_names.NAMES))
def test_a_package_that_was_a_module_still_has_what_that_one_had(package):
    now = importlib.import_module(f"fedhet.{former_names.NAMES[package]}")
    was = importlib.import_module(f"fedhet.{package}")
    public = [n for n, value in vars(now).items() if getattr(value, "__module__", None) == now.__name__ and n[0] != "_"]
    assert public and all(getattr(was, name) is getattr(now, name) for name in public)
    with pytest.raises(AttributeError, match=f"fedhet.{package}"):
        _ = was.no_such_thing


def test_classes_that_plug_ins_build_on_have_their_former_names():
    for module, names in former_names.CLASSES.items():
        for former, now in names.items():
            with pytest.warns(FormerName, match=f"{module}.{former} is now {module}.{now}"):
                found = getattr(importlib.import_module(module), former)
            assert found is getattr(importlib.import_module(module), now)


def test_a_space_that_overrides_a_former_hook_is_asked_by_the_present_one():
    with pytest.warns(FormerName, match="Mine.accept is now decode_delta"):

        class Mine(AbstractDense):
            def accept(self, before, job, delta):
                return {"w": delta["w"] * 2}

    assert Mine.decode_delta(None, {}, None, {"w": 3.0}) == {"w": 6.0}


def test_a_former_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fedhet.enroll.node"], capture_output=True, text=True, check=False,
        cwd=source_tree.root(), timeout=60,
    )  # fmt: skip
    assert "fedhet.enroll.node" not in done.stderr.partition("No module named")[2], done.stderr


def test_nothing_of_ours_uses_a_former_name():
    code = (
        "import warnings, fedhet, pkgutil, importlib\n"
        "from fedhet.former_names import FormerName\n"
        "warnings.simplefilter('error', FormerName)\n"
        "for one in pkgutil.walk_packages(fedhet.__path__, 'fedhet.'):\n"
        "    if '__main__' not in one.name: importlib.import_module(one.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source_tree.root(), timeout=120)


@pytest.mark.parametrize(
    "former, now", [*former_names.OPTIONS.items(), ("gate.clones=true", "gate.reject_duplicates=true")]
)
def test_former_overrides_are_taken_as_what_they_are_called_now(former, now):
    with pytest.warns(FormerName, match=f"{former} is now {now}"):
        was = composition.resolved(composition.compose([former]))
    assert was == composition.resolved(composition.compose([now]))


def test_a_former_run_is_read_reported_evaluated_and_compared(fedhet, folder):
    row = Result.read(Path(folder)).row
    assert row["mlp_backend"] and row["versions"] == 3
    assert fedhet("report", folder)[0] == 0
    code, out, _ = fedhet("evaluate", folder, "--json")
    assert code == 0 and f"{row['accuracy']:.4f}"[:5] in out
    code, _, err = fedhet("run", "--resume", folder)
    assert code == 0, err


def test_a_former_run_gives_the_same_bits_today(fedhet, folder, tmp_path):
    given = ["debug=quick", "fleet=unlike", "fleet.clients=4", "model=softmax", "gate.clones=true"]
    more = ["gate.forgive_after=50", "stop.versions=3", "workers=0", "--out", str(tmp_path / "anew")]
    code, _, err = fedhet("run", *given, *more)
    assert code == 0 and "notice: fleet=unlike is now fleet=mixed_devices" in err
    assert Result.read(tmp_path / "anew").row["weights_sha256"] == Result.read(Path(folder)).row["weights_sha256"]
