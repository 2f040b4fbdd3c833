"""The cache of compiled functions: complete files, private to the user, or torch instead."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhet.native import compiler
from fedhet.native.compiler import Source

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")

TWICE = Source("twice", "twice", "int twice(int x) { return 2 * x; }\n", ["-O1"])
"""A function that is compiled in a moment."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(compiler, "HUNG", set())
    yield tmp_path


def answer(source: Source = TWICE) -> int | str:
    call = source.load([ctypes.c_int], ctypes.c_int)
    return call if isinstance(call, str) else int(call(21) or 0)


def files() -> list[Path]:
    return sorted(p for p in compiler.cache_folder().iterdir() if p.is_file())


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_it_lies_in_a_folder_of_this_users_alone_and_leaves_nothing_beside_it() -> None:
    assert answer() == 42
    folder = compiler.cache_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    pointer, library = files()
    assert library.name == f"{pointer.name}-{pointer.read_text()}.so"
    assert [p for p in folder.iterdir() if p.is_dir()] == []


def test_a_library_that_is_there_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    place = TWICE.place()
    monkeypatch.setattr(Source, "_build", lambda *given: pytest.fail("built again"))
    assert TWICE.place() == place and answer() == 42


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "gone", "huge", "folder"])
@pytest.mark.parametrize("which", [0, 1], ids=["pointer", "library"])
def test_a_damaged_file_is_built_anew_before_anything_is_loaded(damage: str, which: int) -> None:
    place = TWICE.place()
    path = files()[which]
    path.chmod(0o700)
    whole = path.read_bytes()
    path.unlink()
    match damage:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "flipped":
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_bytes(b"\xff no library \n" * 50)
        case "huge":
            with path.open("wb") as file:
                file.truncate(1 << 33)
        case "folder":
            path.mkdir()
    got = answer()
    if damage == "folder":
        assert isinstance(got, str) and "not usable" in got
    else:
        assert got == 42 and place.is_file()


@pytest.mark.parametrize("wrapper", ["gcc -m64", "{}/wrap gcc", "'{}/with space/cc' -DX=1"])
def test_a_compiler_may_have_options_a_wrapper_and_spaces(
    wrapper: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "with space").mkdir()
    script(home / "wrap", 'exec "$@"')
    script(home / "with space" / "cc", 'exec gcc "$@"')
    monkeypatch.setenv("CC", wrapper.format(home))
    assert answer() == 42


def test_another_compiler_builds_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TWICE.place()
    monkeypatch.setenv("CC", script(home / "mine", 'exec gcc "$@"'))
    second = TWICE.place()
    script(home / "mine", 'exec gcc -O0 "$@"')
    assert len({first.name.split("-")[1], second.name.split("-")[1], TWICE.place().name.split("-")[1]}) == 3


WRONG = {
    "exit 3": "the compiler ended with 3",
    "echo 'it.c:1: error: no room'; exit 1": "it.c:1: error: no room",
    "kill -SEGV $$": "the compiler ended with -11",
    "exit 0": "wrote no library",
    'while [ "$1" != -o ]; do shift; done; echo garbage > "$2"': "a trial of the library ended with 1",
    'gcc "$@"; while [ "$1" != -o ]; do shift; done; head -c 700 "$2" > t; mv t "$2"': "a trial of the library",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_compiler_that_fails_or_writes_garbage_leaves_torch_and_a_reason(
    text: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", script(home / "cc", text))
    got = answer()
    assert isinstance(got, str) and WRONG[text] in got
    assert list(compiler.cache_folder().iterdir()) == []


@pytest.mark.parametrize("told", ["'gcc", "/nowhere/cc -O3", "no-such-compiler"])
def test_a_compiler_that_is_not_there_is_named(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", told)
    assert told in str(answer())


def test_a_compiler_that_hangs_is_ended_with_all_it_started_and_not_waited_for_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "SECONDS", 0.5)
    monkeypatch.setenv("CC", script(home / "cc", f"sleep 300 & echo $! > {home}/child; wait"))
    began = time.monotonic()
    assert "took more than 0.5 seconds" in str(answer())
    assert "took more than 0.5 seconds" in str(answer(Source("other", "twice", TWICE.text, [])))
    assert time.monotonic() - began < 5
    child = Path(f"/proc/{(home / 'child').read_text().strip()}/stat")
    deadline = time.monotonic() + 5
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_folder_others_could_write_to_is_emptied_and_made_private() -> None:
    answer()
    folder = compiler.cache_folder()
    folder.chmod(0o777)
    before = {p.stat().st_ctime_ns for p in files()}
    assert answer() == 42
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(files()) == 2 and before.isdisjoint(p.stat().st_ctime_ns for p in files())


def test_a_folder_that_others_can_replace_or_that_is_none_is_not_used(home: Path) -> None:
    open_to_all = home / "cache"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert "another user can replace" in str(answer())
    open_to_all.chmod(0o700)
    (open_to_all / "fedhet").mkdir(exist_ok=True)
    shutil.rmtree(open_to_all / "fedhet" / "compiled", ignore_errors=True)
    (open_to_all / "fedhet" / "compiled").symlink_to(home)
    assert "is no folder" in str(answer())


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder takes root to make")
def test_another_users_folder_is_not_used() -> None:
    folder = compiler.cache_folder()
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)
    assert "belongs to another user" in str(answer())


def test_a_folder_that_cannot_be_written_leaves_torch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    assert "not usable: NotADirectoryError" in str(answer())
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    assert "not usable" in str(answer())


LOAD = (
    "import ctypes; from fedhet.native.compiler import Source; "
    f"call = Source('twice', 'twice', {TWICE.text!r}, ['-O1']).load([ctypes.c_int], ctypes.c_int); "
    "print(call if isinstance(call, str) else call(21))"
)


@pytest.mark.parametrize("most", [10, 3000], ids=["source", "library"])
def test_where_no_more_can_be_written_torch_is_left(most: int) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); "
    run = subprocess.run([sys.executable, "-c", limit + LOAD], capture_output=True, text=True, timeout=60, check=True)
    assert "not usable" in run.stdout and "Traceback" not in run.stderr


def test_processes_that_build_at_once_all_get_it(home: Path) -> None:
    runs = [subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == ["42"] * 4
    assert len(files()) == 2
