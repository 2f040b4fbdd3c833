"""What `mypy --strict` says of a user's own plug-ins: nothing of right ones, and of wrong ones the line and the code.

Both files are checked in one run with the project's settings and the cache that `python -m mypy` leaves, in about a
second; without that cache mypy reads torch first, which takes half a minute once.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).resolve().parents[2]
RIGHT, WRONG = "tests/typing/plugins.py", "tests/typing/wrong_plugins.py"

Found = dict[int, set[str]]
"""Codes of errors by line."""


@pytest.fixture(scope="module")
def errors() -> dict[str, Found]:
    """Of each file, what mypy finds."""
    settings = [
        "--config-file",
        "pyproject.toml",
        "--strict",
        "--no-pretty",
        "--no-error-summary",
        "--hide-error-context",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        out, err, _ = api.run([*settings, RIGHT, WRONG])
    assert err == ""
    found: dict[str, Found] = {RIGHT: {}, WRONG: {}}
    for line in out.splitlines():
        at = re.fullmatch(r"(.+?):(\d+): (error|note): (.*?)(?:  \[([\w-]+)\])?", line)
        assert at is not None, line
        if at[3] == "error":
            found[at[1]].setdefault(int(at[2]), set()).add(at[5])
    return found


def test_right_plugins_pass(errors: dict[str, Found]) -> None:
    assert errors[RIGHT] == {}


def test_wrong_plugins_are_rejected_where_they_are_wrong(errors: dict[str, Found]) -> None:
    lines = (ROOT / WRONG).read_text(encoding="utf-8").splitlines()
    marks = {at: re.search(r"  # ([a-z-]+)$", line) for at, line in enumerate(lines, 1)}
    assert errors[WRONG] == {at: {mark[1]} for at, mark in marks.items() if mark is not None}
