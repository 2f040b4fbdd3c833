"""Import rules that the contracts in pyproject.toml cannot express: which of Flower's modules are used, and where."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from fedhet.provenance import source_tree

PUBLIC = {"flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp", "flwr.simulation"}
INNER = {
    "fedhet/flower/compat.py",
    "fedhet/flower/fleet_api.py",
    "fedhet/simulation/legacy_servers.py",
    "fedhet/flower/reply_stream.py",
}
FILES = sorted(
    path.relative_to(source_tree.root()).as_posix()
    for tree in ("fedhet", "strategies", "clients")
    for path in (source_tree.root() / tree).rglob("*.py")
)


def flower_modules(path: Path) -> set[str]:
    """The modules of Flower that a file imports from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "flwr"}


@pytest.mark.parametrize("name", FILES)
def test_only_the_compatibility_files_touch_flowers_inner_modules(name):
    private = flower_modules(source_tree.root() / name) - PUBLIC
    assert name in INNER or private == set()


@pytest.mark.parametrize("name", sorted(INNER))
def test_the_compatibility_files_are_where_they_are(name):
    assert flower_modules(source_tree.root() / name) - PUBLIC != set()


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("strategies/", "clients/"))])
def test_a_plug_in_writes_to_nothing_global(name):
    tree = ast.parse((source_tree.root() / name).read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)] == []


def test_every_folder_of_code_is_a_package():
    # the import contracts do not see a folder without __init__.py
    folders = {(source_tree.root() / name).parent for name in FILES}
    assert sorted(str(f) for f in folders if not (f / "__init__.py").is_file()) == []


def test_every_public_name_is_there() -> None:
    import fedhet

    assert all(getattr(fedhet, name) is not None for name in fedhet.__all__)


def test_what_operates_a_federation_and_looks_after_it_does_not_load_torch() -> None:
    """`fedhet serve`, an agent and most commands train nothing, and loading torch takes longer than what they do."""
    operator, device = (
        ["ca_commands", "client_commands", "serve", "run_supervisor", "submit"],
        ["commands", "agent", "doctor"],
    )
    modules = [*(f"server.{name}" for name in operator), *(f"device.{name}" for name in device)]
    code = "".join(f"import fedhet.federation.{name}\n" for name in modules) + "import fedhet.cli.submit, sys\n"
    subprocess.run(
        [sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], cwd=source_tree.root(), check=True
    )


def imported(path: Path, modules: Collection[str]) -> set[str]:
    """The modules among these that a file imports, inside of functions too, but not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if names & set(modules) else {node.module}
    return found & set(modules)


def test_there_is_no_circle_of_files() -> None:
    root = source_tree.root()
    trees = [name for name in (*source_tree.PACKAGES, "experiments") if (root / name).is_dir()]
    files = [path for name in trees for path in (root / name).rglob("*.py")]
    named = {path.relative_to(root).with_suffix("").as_posix().replace("/", "."): path for path in files}
    named = {name.removesuffix(".__init__"): path for name, path in named.items()}
    graph = {name: imported(path, named) - {name} for name, path in named.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle
    assert len(order) == len(named) > 300


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith("/__init__.py")])
def test_a_folder_says_what_belongs_there_and_what_does_not(name: str) -> None:
    text = ast.get_docstring(ast.parse((source_tree.root() / name).read_text(encoding="utf-8"))) or ""
    assert len([sentence for sentence in text.replace("\n", " ").split(". ") if sentence.strip()]) >= 2, text


LONGEST = 250
"""Lines of a file that reads in one sitting."""
LONGER = {
    "fedhet/native/mlp_sgd_c.py",  # one C text
    "fedhet/former_names.py",  # a table, and gone with the next release
    # to be cut:
    "fedhet/simulation/worker_pool.py", "fedhet/simulation/ray_executor.py", "fedhet/simulation/virtual_grid.py",
    "fedhet/numerics/tree.py", "fedhet/population/profile.py", "fedhet/hierarchy/processes.py",
    "fedhet/engine/server_state.py",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_reads_in_one_sitting(name: str) -> None:
    lines = (source_tree.root() / name).read_text(encoding="utf-8").count("\n")
    assert (lines <= LONGEST) or name in LONGER, f"{lines} lines"
