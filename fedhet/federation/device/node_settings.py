"""What is written for the programs that run a device: the node's settings and a systemd unit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fedhet.federation.common import private_files
from fedhet.federation.device.state import Device

RESTART_S = 3.0
"""Seconds between the end of fedhet's node, or of Flower's SuperExec, and its restart."""


def node_config(device: Device) -> str:
    """The node configuration that Flower passes to a client's app, as TOML: number, measured and declared values.

    `partition-id` is the declared partition, else the client's number. `data` and `state` are paths on this device.
    """
    about = device.about
    declared = dict(about.get("declared", {}))
    claim: dict[str, Any] = json.loads(private_files.read_private(device.folder / "profile.json"))
    measured = claim["measured"]
    values: dict[str, Any] = {
        "partition-id": declared.get("partition", about["number"]),
        "num-partitions": declared.get("partitions"),
        "client": about["number"],
        "client-name": about["name"],
        "node": about["node"],
        "data": about.get("data") or None,
        "state": str((device.folder / "work").resolve()),
        "num_examples": declared.get("examples"),
        "max_rank": declared.get("max_rank"),
        "sec_per_step": measured["step_us"] / 1e6 if "step_us" in measured else None,
    }
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items() if value is not None
    )


def systemd_unit(folder: Path, command: str) -> str:
    """A systemd unit that runs this client at boot."""
    return f"""# /etc/systemd/system/fedhet-client.service; start it with: systemctl enable --now fedhet-client
[Unit]
Description=fedhet client
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={command} client run --state {folder.resolve()}
User={os.environ.get("USER", "fedhet")}
Restart=on-failure
RestartSec={RESTART_S:g}
# 42, 49 and 52: revoked, expired for too long, left
RestartPreventExitStatus=19 42 49 52
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths={folder.resolve()}

[Install]
WantedBy=multi-user.target
"""
