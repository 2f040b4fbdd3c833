"""Run folders: their names, one process per folder, and users without a home folder."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedhet.cli import common
from fedhet.config import composition
from fedhet.provenance import source_tree
from fedhet.runs import event_log, runner

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax", "stop.versions=1"]


def test_folders_asked_for_at_one_moment_are_different_and_exist(tmp_path, monkeypatch):
    code = (
        "import sys; from pathlib import Path; from fedhet.runs.runner import claim; "
        "[print(claim(Path('here'), 'fedavg-seed0')) for _ in range(50)]"
    )
    monkeypatch.setenv("PYTHONPATH", str(source_tree.root()))
    ask = [sys.executable, "-c", code]
    both = [subprocess.Popen(ask, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    names = [name for one in both for name in one.communicate(timeout=60)[0].split()]
    assert len(names) == len(set(names)) == 100
    assert {p.name for p in (tmp_path / "here").iterdir()} == {Path(name).name for name in names}


def test_a_file_that_must_be_new_is_written_by_one_only(tmp_path):
    event_log.write_new(tmp_path / "config.yaml", "first")
    with pytest.raises(FileExistsError):
        event_log.write_new(tmp_path / "config.yaml", "second")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("config.yaml", "first")]


def test_two_runs_at_once_do_not_share_a_folder_and_neither_resumes_the_others(fedhet, monkeypatch):
    monkeypatch.setattr(runner, "LOCK_SECONDS", 0.2)
    assert fedhet("run", *QUICK, "--out", "one")[0] == 0
    Path("one/result.json").unlink()
    with Path("one/config.yaml").open("rb") as file:  # as a process that works on it does
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = fedhet("run", "--resume", "one")
        assert code == 2 and "another process works on this run" in err
    assert fedhet("run", "--resume", "one")[0] == 0


def test_bad_input_leaves_no_folder(fedhet, tmp_path):
    code, _, err = fedhet("run", "schedule.min_updates=50")
    assert code == 2 and "schedule.min_updates=50 is above the 12 clients of the fleet" in err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_gets_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = composition.compose(QUICK)
    first, second = (common.new_folder(cfg, "sweep") for _ in range(2))
    assert first != second and first.is_dir() and second.is_dir()


def test_a_user_without_a_home_folder_can_do_what_needs_none(tmp_path):

    home = {k: v for k, v in os.environ.items() if k not in ("HOME", "FEDHET_HOME", "FEDHET_CACHE", "XDG_CACHE_HOME")}
    (tmp_path / "tmp").mkdir()
    code = (
        "import pwd; pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid)); "
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from fedhet.cli.main import main; "
        "sys.exit(main(sys.argv[1:]))"
    )

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(source_tree.root()), *words], cwd=tmp_path, capture_output=True, text=True,
            env={**home, "TMPDIR": str(tmp_path / "tmp")}, timeout=120, check=False,
        )  # fmt: skip

    assert ask("version").returncode == 0
    done = ask("run", *QUICK, "--out", "one", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"] == 1
    done = ask("clients", "list")
    assert done.returncode == 2
    assert done.stderr == "error: ~/.fedhet/federation: this user has no home folder: set FEDHET_HOME or HOME\n"
