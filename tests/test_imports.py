"""Import rules that the contracts in pyproject.toml cannot say: which of Flower's modules are used, and where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fedhet import origin

PUBLIC = {"flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp", "flwr.simulation"}
INNER = {"fedhet/flower_compat.py", "fedhet/flower_fleet.py", "fedhet/flower_legacy.py", "fedhet/flower_replies.py"}
FILES = sorted(
    path.relative_to(origin.root()).as_posix()
    for tree in ("fedhet", "strategies", "clients")
    for path in (origin.root() / tree).rglob("*.py")
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
    private = flower_modules(origin.root() / name) - PUBLIC
    assert name in INNER or private == set()


@pytest.mark.parametrize("name", sorted(INNER))
def test_the_compatibility_files_are_where_they_are(name):
    assert flower_modules(origin.root() / name) - PUBLIC != set()


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("strategies/", "clients/"))])
def test_a_plug_in_writes_to_nothing_global(name):
    tree = ast.parse((origin.root() / name).read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)] == []


def test_every_folder_of_code_is_a_package():
    # the import contracts do not see a folder without __init__.py
    folders = {(origin.root() / name).parent for name in FILES}
    assert sorted(str(f) for f in folders if not (f / "__init__.py").is_file()) == []


def test_every_public_name_is_there() -> None:
    import fedhet

    assert all(getattr(fedhet, name) is not None for name in fedhet.__all__)


def test_what_operates_a_federation_and_looks_after_it_does_not_load_torch() -> None:
    """`fedhet serve`, an agent and most commands train nothing, and loading torch takes longer than what they do."""
    modules = ["commands", "device_commands", "agent", "serve", "runs", "submit", "doctor"]
    code = "".join(f"import fedhet.enroll.{name}\n" for name in modules) + "import fedhet.cli_submit, sys\n"
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], cwd=origin.root(), check=True)
