"""The code that must be equal on server and device: training and packing of an update, without comments."""

import ast
import json
import os
import subprocess
import sys
import textwrap

import pytest

from fedhet.config import composition
from fedhet.provenance import device_code
from fedhet.runs.experiment import Experiment

PLAIN = """
from x import y
class Sgd:
    lr: float = 0.1
    def step(self, g):
        return f"{self.lr:.2f} {g}"
"""


@pytest.mark.parametrize(
    "same",
    [
        PLAIN.replace("lr: float", "# of the step\n    lr: float"),
        PLAIN.replace("class Sgd:\n", 'class Sgd:\n    """A doc."""\n'),
        '"""A module\'s doc."""\n' + PLAIN,
        PLAIN.replace("0.1", "1e-1").replace("(self, g)", "(\n        self,\n        g,\n    )"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(same):
    assert device_code.hash_source(same) == device_code.hash_source(PLAIN)


@pytest.mark.parametrize(
    ("before", "after"), [("0.1", "0.2"), ("step", "run"), ("0.1", "None"), ("from x", "from z"), ("lr", "lr1"),
                          (".2f", ".3f"), ("return", "yield")],
)  # fmt: skip
def test_what_a_module_does_counts(before, after):
    assert device_code.hash_source(PLAIN.replace(before, after)) != device_code.hash_source(PLAIN)


def test_none_and_a_text_that_looks_like_a_tree_are_values():
    told = {device_code.hash_source(f"x = {v}") for v in ("None", "'None'", "[]", "()", "0", "False", "''", "b''")}
    assert len(told) == 8


def test_what_other_versions_of_python_add_to_a_tree_does_not_count(monkeypatch):
    tree, plain = ast.parse(PLAIN), list(device_code._words(ast.parse(PLAIN)))
    monkeypatch.setattr(ast.ClassDef, "_fields", (*ast.ClassDef._fields, "type_params"))
    tree.body[1].type_params = []
    assert list(device_code._words(tree)) == plain


def world_of(*words):
    return Experiment.of(composition.resolved(composition.compose(["data=digits", *words]))).for_devices()


def test_a_method_needs_the_modules_of_its_device_half_and_no_others():
    plain = set(device_code.modules(world_of("strategy=fedavg")))
    assert {
        "clients.work.sgd",
        "clients.data.digits",
        "strategies.spaces.full",
        "fedhet.engine.client_runner",
        "fedhet.numerics.wire_format",
    } <= plain
    assert not [
        m for m in plain if m.startswith(("fedhet.report", "fedhet.federation", "fedhet.simulation", "fedhet.cli"))
    ]
    assert not [m for m in plain if m.startswith(("strategies.schedules", "strategies.rules", "strategies.budgets"))]
    scaffold = set(device_code.modules(world_of("strategy=scaffold")))
    assert "clients.work.scaffold" in scaffold - plain and "strategies.spaces.control" in scaffold
    layered = set(device_code.modules(world_of("strategy=fedavg", "staleness=polynomial", "optimizer=adam")))
    assert layered == plain, "layers that only the server asks"
    noisy = set(device_code.modules(world_of("strategy=fedavg", "privacy=noise")))
    assert [m for m in noisy - plain if m.startswith("strategies.privacy.")]
    assert device_code.digest(world_of("strategy=fedavg")) == device_code.digest(world_of("strategy=fedavg", "seed=2"))
    assert device_code.digest(world_of("strategy=fedavg")) != device_code.digest(world_of("strategy=scaffold"))


def ask(folder, code):
    """What another process finds, with this folder on its path."""
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_package_of_the_users_own_belongs_to_it_and_is_not_imported(tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "work.py").write_text("from .steps import go\nfrom typing import TYPE_CHECKING\n"
                                     "if TYPE_CHECKING:\n    from mine.types import T\n")  # fmt: skip
    (package / "steps.py").write_text("def go():\n    from mine import late\n")
    for name in ("late", "types", "other"):
        (package / f"{name}.py").write_text("")
    code = """
        import json
        from fedhet import device_code
        world = {"work": {"_target_": "mine.work.Go"}, "rule": {"_target_": "mine.other.R"}}
        names = [n for n in device_code.modules(json.dumps(world)) if n.startswith("mine")]
        print(json.dumps(device_code.hashes([*names, "mine.gone", "no.such", "a b"])))
    """
    found = ask(tmp_path, code)
    assert {n for n, h in found.items() if h != "missing"} == {"mine", "mine.work", "mine.steps", "mine.late"}
    assert {n for n, h in found.items() if h == "missing"} == {"mine.gone", "no.such", "a b"}


def test_a_file_newer_than_the_running_process_is_reported(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "theirs.py").write_text("x = 1\n")
    code = f"""
        import json, os, time
        from fedhet import device_code
        import mine
        for name in ("mine", "theirs"):
            os.utime({str(tmp_path)!r} + f"/{{name}}.py", (time.time() + 5, time.time() + 5))
        server = {{"server": device_code.hashes(["mine"], running=False)["mine"]}}
        print(json.dumps(device_code.hashes(["mine", "theirs"]) | server))
    """
    found = ask(tmp_path, code)
    assert found["mine"] == device_code.CHANGED and len(found["theirs"]) == 32, (
        "who has not loaded it will load this one"
    )
    assert found["server"] == found["theirs"], "a server has read it for this run"
