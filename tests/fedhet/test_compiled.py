"""Compiled functions: where their files lie, and that no file, folder or compiler makes a process fail."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedhet import compiled, origin
from fedhet.compiled import Source

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
TWICE = Source("twice", "twice", "int twice(int x) { return 2 * x; }\n", ["-O2"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "fedhet" / "native"


def works() -> bool:
    call = TWICE.load([ctypes.c_int], ctypes.c_int)
    return not isinstance(call, str) and call(21) == 42


def test_a_file_is_kept_for_this_user_alone(cache: Path) -> None:
    assert works()
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600 and cache.stat().st_mode & 0o777 == 0o700
    before = file.stat().st_mtime_ns
    assert works() and file.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "open to others", "a folder", "a link"])
def test_a_file_that_is_not_what_was_compiled_is_compiled_again(cache: Path, tmp_path: Path, damage: str) -> None:
    built = TWICE.build()
    assert isinstance(built, Path)
    data = built.read_bytes()
    match damage:
        case "cut":
            built.write_bytes(data[: len(data) // 2])
        case "altered":
            built.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "empty":
            built.write_bytes(b"")
        case "open to others":
            built.chmod(0o666)
        case "a folder":
            built.unlink()
            built.mkdir()
        case "a link":
            other = built.rename(tmp_path / "other.so")
            built.symlink_to(other)
    if damage == "a folder":  # nothing that this code makes, so it is left alone
        assert str(TWICE.load([ctypes.c_int])).startswith("the compiled loop is not usable")
        return
    assert works()
    (again,) = cache.iterdir()
    assert again.is_file() and not again.is_symlink() and again.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("where", "mode"), [("fedhet", 0o777), ("fedhet/native", 0o777), ("fedhet/native", 0o770)])
def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path, where: str, mode: int) -> None:
    assert works()
    (tmp_path / where).chmod(mode)
    assert "is not a folder of this user's that nobody else can write" in str(TWICE.load([ctypes.c_int]))


def test_a_cache_made_with_a_umask_for_the_own_group_is_used(tmp_path: Path) -> None:
    (tmp_path / "fedhet").mkdir()
    (tmp_path / "fedhet").chmod(0o775)
    assert works()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_elses_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "fedhet").mkdir(mode=0o700)
    os.chown(tmp_path / "fedhet", 12345, 12345)
    assert "is not a folder of this user's" in str(TWICE.load([ctypes.c_int]))


def test_a_user_without_a_home_folder_has_a_private_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert works()
    assert (tmp_path / f"fedhet-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_the_compiler_may_be_several_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_ = script(tmp_path / "my ccache", 'echo "$@" >> "$0.log"\nexec "$@"\n')
    monkeypatch.setenv("CC", f"'{cache_}' cc -g0")
    assert works()
    assert (tmp_path / "my ccache.log").read_text().startswith("cc -g0 -m")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exit 3", "CalledProcessError"),
        ("sleep 600 & sleep 600", "TimeoutExpired"),
        ('for o in "$@"; do case $last in -o) echo rubbish > "$o";; esac; last=$o; done', "cannot be loaded: OSError"),
        ("true", "FileNotFoundError"),
    ],
)
def test_a_compiler_that_fails_hangs_or_writes_rubbish_is_done_without(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    monkeypatch.setattr(compiled, "COMPILE_SECONDS", 0.5)
    monkeypatch.setenv("CC", script(tmp_path / "cc", text))
    start = time.monotonic()
    assert why in str(TWICE.load([ctypes.c_int]))
    assert time.monotonic() - start < 30
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("cc", ["'unbalanced", "/nowhere/cc", "  "])
def test_a_compiler_that_there_is_not_is_done_without(monkeypatch: pytest.MonkeyPatch, cc: str) -> None:
    monkeypatch.setenv("CC", cc)
    assert isinstance(TWICE.load([ctypes.c_int]), str)


def test_processes_that_compile_at_once_all_have_it(tmp_path: Path) -> None:
    code = (
        "import ctypes; from fedhet.compiled import Source; "
        f"call = Source('twice', 'twice', {TWICE.text!r}, ['-O2']).load([ctypes.c_int], ctypes.c_int); "
        "assert call(21) == 42"
    )
    env = {**os.environ, "PYTHONPATH": str(origin.root())}
    all_ = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(3)]
    assert [one.wait(timeout=120) for one in all_] == [0, 0, 0]
