"""Property tests use the same examples whatever ran before them, and every test has a time limit."""

import importlib.util
import sys
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Shares


def examples() -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []

    @settings(settings.get_profile("repeatable"))
    @given(st.integers(), st.text())
    def collect(number: int, text: str) -> None:
        found.append((number, text))

    collect()
    return found


def test_examples_do_not_depend_on_the_modules_that_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "_current_profile", "repeatable")  # also while `explore` is asked for
    before = examples()
    path = tmp_path / "numerous.py"
    path.write_text(f"numbers, names = {list(range(1000, 1500))}, {[f'name {n}' for n in range(300)]}\n")
    spec = importlib.util.spec_from_file_location("numerous", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "numerous", module)
    spec.loader.exec_module(module)
    assert examples() == before and len(before) > 50


def test_every_test_has_a_time_limit(request):
    config = request.config
    assert float(config.getini("timeout")) < config.getini("faulthandler_timeout")
    assert config.getini("faulthandler_exit_on_timeout")


class Node:
    gateway = SimpleNamespace(id="gw0")
    shutting_down = False


def test_a_test_whose_process_died_is_not_run_again():
    option = SimpleNamespace(tx=["popen"], loadscopereorder=True)
    shares, node = Shares(SimpleNamespace(getvalue=lambda name: ["popen"], option=option)), Node()
    shares.add_node(node)
    shares.assigned_work[node] = {"a.py": {"a.py::first": True, "a.py::dies": False, "a.py::last": False}}
    assert shares.remove_node(node) == "a.py::dies"
    assert dict(shares.workqueue) == {"a.py": {"a.py::first": True, "a.py::dies": True, "a.py::last": False}}
