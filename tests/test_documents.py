"""Paths, commands and versions in the Markdown files and CITATION.cff are correct."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer
import yaml

import fedhet
from fedhet.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "strategies/README.md", "clients/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "fedhet").rglob("*.md")),
]
PLACES = ("fedhet", "strategies", "clients", "conf", "tests", "experiments", ".ci")
MADE = re.compile(r"[A-Z]{4}|\*|\.\.\.")
"""A path with a word to be filled in, such as strategies/AXIS/NAME.py."""


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def paths(name: str) -> set[str]:
    """Paths in backticks or after a command, from the root or from the document's own folder."""
    text, folder = text_of(name), (ROOT / name).parent
    inside = {child.name for child in folder.iterdir() if child.is_dir()} if folder != ROOT else set()
    found = re.findall(r"(?<![\w/.-])[\w.]+/[\w/.]*", text)
    return {p.rstrip(".") for p in found if p.partition("/")[0] in {*PLACES, *inside} and not MADE.search(p)}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_path_that_a_document_names_is_there(name: str) -> None:
    folders = (ROOT, (ROOT / name).parent)
    assert [p for p in sorted(paths(name)) if not any((folder / p).exists() for folder in folders)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_link_leads_somewhere(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text_of(name)) if "://" not in link]
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def commands(name: str) -> list[str]:
    """What a document gives as commands of ours, in backticks or after a prompt."""
    text = text_of(name)
    found = re.findall(r"`(fedhet [a-z][^`]*)`", text)
    found += re.findall(r"^ *\$ (?:.*&& )?(fedhet [^#\n]*)", text, re.MULTILINE)
    return sorted({re.sub(r"\s+", " ", line.partition(" # ")[0]).strip() for line in found})


def wrong(line: str) -> str:
    """What a line of a command has that the command line does not; empty if nothing."""
    at: click.Command = typer.main.get_command(app)
    words = [w for w in shlex.split(line.replace("…", "")) if not w.startswith("fedhet")]
    while words and isinstance(at, click.Group):
        if words[0].startswith("-") or words[0] == "...":
            break
        if words[0] not in at.commands:
            return f"{words[0]} is no command"
        at = at.commands[words.pop(0)]
    known = {name for parameter in at.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0].rstrip(",.") for word in words if word.startswith("--")}
    return ", ".join(sorted(given - known - {"--help", "--debug"}))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_command_that_a_document_gives_has_these_options(name: str) -> None:
    assert {line: wrong(line) for line in commands(name) if wrong(line)} == {}


def test_documents_are_read_at_all() -> None:
    assert "fedhet/engine/server.py" in paths("CONTRIBUTING.md") and "rules/krum.py" in paths("strategies/README.md")
    assert "fedhet ca rotate --compromised" in commands("CHANGELOG.md") and len(commands("README.md")) > 30
    assert wrong("fedhet cash rotate") and wrong("fedhet ca rotate --compromized") and not wrong("fedhet run rule=krum")


def test_one_version_everywhere() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    cited = yaml.safe_load(text_of("CITATION.cff"))
    newest = re.search(r"^## \[(\d[^]]*)\] - (\S+)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None and "## [Unreleased]" in text_of("CHANGELOG.md")
    assert project["version"] == fedhet.__version__ == cited["version"] == newest[1]
    assert str(cited["date-released"]) == newest[2] and cited["license"] == project["license"]


def test_hooks_before_a_commit_need_no_network() -> None:
    (repository,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    assert {(hook["language"], hook["entry"].partition(" -m ")[0]) for hook in repository["hooks"]} == {
        ("system", "python")
    }
