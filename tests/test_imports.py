"""Import rules that the contracts in pyproject.toml cannot say: which of Flower's modules are used, and where."""

from __future__ import annotations

import ast
import subprocess
import sys
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
    operator, device = ["commands", "serve", "run_supervisor", "submit"], ["commands", "agent", "doctor"]
    modules = [*(f"server.{name}" for name in operator), *(f"device.{name}" for name in device)]
    code = "".join(f"import fedhet.federation.{name}\n" for name in modules) + "import fedhet.cli.submit, sys\n"
    subprocess.run(
        [sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], cwd=source_tree.root(), check=True
    )
