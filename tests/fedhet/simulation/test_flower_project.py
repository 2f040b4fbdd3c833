"""A Flower app in its project folder: its other modules, its pyproject.toml and its run configuration."""

import math
import sys
import textwrap
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from flwr.serverapp import ServerApp

from fedhet.simulation.flower_project import AppError, Project, find_project, load, parse_run_config, run_config

PROJECT = """
[project]
name = "x"
[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
[tool.flwr.app.config]
rounds = 3
lr = 0.1
[tool.flwr.app.config.model]
hidden = 8
"""


@pytest.fixture
def folder(tmp_path, request):
    """A project as `flwr new` lays it out."""
    package = f"app_{request.node.name[5:25]}"
    (tmp_path / package).mkdir()
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(package=package))
    (tmp_path / package / "task.py").write_text("NAME = 'neighbour'\n")
    app = f"""
        from flwr.serverapp import ServerApp
        from {package}.task import NAME
        app = ServerApp()
    """
    (tmp_path / package / "server_app.py").write_text(textwrap.dedent(app))
    path = list(sys.path)
    yield tmp_path / package
    sys.path[:] = path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name='x'", {"name": "x"}),
        ("n=1_000 h=0x10", {"n": 1000, "h": 16}),
        ("big=inf", {"big": math.inf}),
        ('name="two words" flag=true', {"name": "two words", "flag": True}),
        ("lr=1e-2 model.hidden=4", {"lr": 0.01, "model.hidden": 4}),
        ("", {}),
    ],
)
def test_a_run_configuration_is_what_flower_makes_of_it(text, expected):
    assert parse_run_config(text) == expected == parse_config_args([text])


def test_a_file_and_several_texts_are_taken_as_flower_takes_them(tmp_path):
    (tmp_path / "more.toml").write_text("a = 1\n[model]\nhidden = 16\nname = 'x'\n")
    assert parse_run_config(str(tmp_path / "more.toml")) == {"a": 1, "model.hidden": 16, "model.name": "x"}
    assert parse_run_config(["a=1", "b=2 a=3"]) == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("rounds 3", "'rounds' is not key=value"),
        ("name=x", "strings?"),
        ("a=[1,2]", "type"),
        ("n=1 stray", "'stray'"),
        ("absent.toml", "absent.toml"),
        (["a=1", "more.toml"], "TOML"),
    ],
)
def test_what_flower_refuses_or_would_pass_over_is_refused(given, why):
    with pytest.raises(ValueError, match=why):
        parse_run_config(given)


def test_an_app_in_its_project_finds_its_neighbours_and_its_configuration(folder, monkeypatch):
    app, project = load(f"{folder}/server_app.py:app", ServerApp)
    assert isinstance(app, ServerApp) and sys.modules[f"{folder.name}.task"].NAME == "neighbour"
    assert project.folder == folder.parent
    assert run_config(project, {"model.hidden": 4}) == {"rounds": 3, "lr": 0.1, "model.hidden": 4}
    monkeypatch.chdir(folder.parent)
    assert load(f"{folder.name}.server_app:app", ServerApp) == (app, project)


def test_a_key_the_project_does_not_have_is_refused_with_the_nearest():
    project = Project(Path("/p"), {"num-server-rounds": 3, "lr": 0.1})
    with pytest.raises(ValueError, match=r"no key 'num-serve-rounds'; did you mean 'num-server-rounds'"):
        run_config(project, {"num-serve-rounds": 1})
    with pytest.raises(ValueError, match=r"no key 'zzz'; it has lr, num-server-rounds"):
        run_config(project, {"zzz": 1})
    assert run_config(None, {"anything": 1}) == {"anything": 1}


def test_a_project_is_the_apps_own_or_none(folder):
    (folder / "other.py").write_text("")
    assert find_project(folder / "server_app.py").config["rounds"] == 3
    assert find_project(folder / "other.py") is None, "it names another module"
    (folder.parent / "beside.py").write_text("")
    assert find_project(folder.parent / "beside.py").config["rounds"] == 3
    (folder.parent / "pyproject.toml").write_text("[tool.flwr.app.config]\na = [1]\n")
    with pytest.raises(AppError, match=r"pyproject\.toml.*type"):
        find_project(folder.parent / "beside.py")
    (folder.parent / "pyproject.toml").write_text("[tool.flwr.app")
    with pytest.raises(AppError, match=r"pyproject\.toml"):
        find_project(folder.parent / "beside.py")
