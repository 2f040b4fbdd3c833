"""The Flower app that a SuperLink runs: our ServerApp and ClientApp, and configuration keys that a run sets."""

from __future__ import annotations


def pyproject(poll: float) -> str:
    """The app's pyproject.toml. The server polls for messages every `poll` seconds. A run overrides `config` (the path
    of its resolved configuration), `folder` (the run folder), `wanted` (nodes to wait for) and `least` (how many of
    them must answer; 0: all)."""
    return f"""[project]
name = "fedhet-run"
version = "1.0.0"
description = "one fedhet run"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedhet"
[tool.flwr.app.components]
serverapp = "fedhet.deployment.serverapp:server"
clientapp = "fedhet.deployment.clientapp:client"
[tool.flwr.app.config]
config = ""
folder = ""
wanted = 0
least = 0
poll = {poll}
"""
