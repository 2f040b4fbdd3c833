"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest

from fedhet.cli import main


@pytest.fixture
def fedhet(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main.main([*arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call
