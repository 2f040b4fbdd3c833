"""One code tree, found wherever it is installed, and its fingerprint."""

import ast
import gc
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedhet.errors import OriginError
from fedhet.provenance import source_tree


def _tree(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_root_has_all_packages_in_addition_to_fedhet():
    for name in ("strategies", "clients", "conf"):
        assert (source_tree.root() / name).is_dir()
    assert source_tree.conf() == source_tree.root() / "conf"


def test_importing_fedhet_is_light_and_opens_the_plug_ins():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fedhet; "
        "heavy = {'torch', 'flwr', 'hydra', 'numpy'} & set(sys.modules); assert not heavy, heavy; "
        "import strategies, clients; print(strategies.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source_tree.root())], cwd="/", capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == source_tree.root() / "strategies" / "__init__.py"


def test_a_foreign_strategies_package_is_named(tmp_path):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "__init__.py").write_text("")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import strategies; sys.path.insert(0, sys.argv[1]); "
        "from fedhet.provenance import source_tree as origin\n"
        "try: origin.verify()\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source_tree.root()), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("mixed code trees: fedhet from ")
    assert f"strategies from {tmp_path / 'strategies'}" in done.stdout


def test_without_plug_ins_there_is_no_root(tmp_path, monkeypatch):
    source_tree.root.cache_clear()
    monkeypatch.setattr(source_tree, "_HERE", tmp_path / "fedhet")
    with pytest.raises(OriginError, match="install fedhet again"):
        source_tree.root()
    monkeypatch.undo()
    assert (source_tree.root() / "conf").is_dir()


def test_a_wheels_inner_root_is_found(tmp_path, monkeypatch):
    for name in ("strategies", "clients", "conf"):
        (tmp_path / "fedhet" / "_root" / name).mkdir(parents=True)
    source_tree.root.cache_clear()
    monkeypatch.setattr(source_tree, "_HERE", tmp_path / "fedhet")
    assert source_tree.root() == tmp_path / "fedhet" / "_root"
    monkeypatch.undo()
    source_tree.root.cache_clear()


def test_the_hash_does_not_depend_on_where_the_code_lies(tmp_path):
    one = _tree(tmp_path / "one", a="x = 1\n", inner__b="y = 2\n")
    two = _tree(tmp_path / "elsewhere", a="x = 1\n", inner__b="y = 2\n", _root__strategies="z = 3\n")
    assert source_tree.hash_code({"fedhet": one}) == source_tree.hash_code({"fedhet": two})


@pytest.mark.parametrize(
    "change",
    [{"a": "x = 2\n"}, {"c": ""}, {"inner__a": "y = 2\n"}],
    ids=["content", "one file more", "another name"],
)
def test_the_hash_sees_every_change(tmp_path, change):
    before = source_tree.hash_code({"fedhet": _tree(tmp_path, a="x = 1\n", inner__b="y = 2\n")})
    assert source_tree.hash_code({"fedhet": _tree(tmp_path, **change)}) != before


def test_the_hash_sees_which_package_a_file_is_in(tmp_path):
    tree = _tree(tmp_path, a="x = 1\n")
    assert source_tree.hash_code({"fedhet": tree}) != source_tree.hash_code({"clients": tree})


def test_sources_are_parsed_in_several_threads_at_once():
    """Whatever runs between two nodes of a tree, such as a garbage collector's callback, lets other threads in."""
    source, threshold = "x = [" + ", ".join(f"({n}, -{n})" for n in range(300)) + "]\n", gc.get_threshold()

    def others_first(*_):
        time.sleep(1e-4)

    gc.set_threshold(100)
    gc.callbacks.append(others_first)
    try:
        with ThreadPoolExecutor(4) as pool:
            trees = list(pool.map(lambda _: source_tree.parsed(source), range(16)))
    finally:
        gc.callbacks.remove(others_first)
        gc.set_threshold(*threshold)
    assert {ast.dump(tree) for tree in trees} == {ast.dump(ast.parse(source))}
