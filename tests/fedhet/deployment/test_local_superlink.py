"""A run whose SuperLink stalls or ends fails with an error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedhet.deployment import local_superlink
from fedhet.deployment.local_superlink import SuperLinkError
from fedhet.flower import socket_files


@pytest.fixture
def flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """flwr(code): what the `flwr` command does, given its arguments as `sys.argv[1:]`. Returns a home for it."""

    def does(code: str) -> Path:
        monkeypatch.setattr(socket_files, "command", lambda *given: [sys.executable, "-c", code, *given[1:]])
        (tmp_path / "work").mkdir()
        return tmp_path

    return does


def test_a_command_that_no_superlink_answers_is_an_error_and_no_hang(flwr, monkeypatch):
    monkeypatch.setattr(local_superlink, "COMMAND_S", 0.5)
    with pytest.raises(SuperLinkError, match=r"flwr list did not end within 0\.5 s"):
        local_superlink._flwr(flwr("import time; time.sleep(600)"), "list")


def test_a_run_that_never_begins_is_an_error_and_no_hang(flwr, monkeypatch, tmp_path):
    monkeypatch.setattr(local_superlink, "STATUS_INTERVAL_S", 0.1)
    monkeypatch.setattr(local_superlink, "BEGIN_S", 0.5)
    told = 'import sys; print({"list": \'{"runs": [{"status": "pending"}]}\'}.get(sys.argv[1], "its last words"))'
    with pytest.raises(SuperLinkError, match=r"still pending; its log ends: its last words"):
        local_superlink._follow(flwr(told), tmp_path / "run", 7, None)
