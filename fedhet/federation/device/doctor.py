"""`fedhet client doctor`: checks of what this device needs, each with its finding and its remedy."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device.state import Device
from fedhet.federation.pki.certificates import DAY

MIN_DISK_BYTES = 1 << 30
MIN_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. `found` is the finding; `fix` is the remedy, empty if the check passed."""

    name: str
    ok: bool
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields, for `--json`."""
        return asdict(self)


def examine(device: Device) -> list[Check]:
    """Run all checks, each after those that it depends on. A failed check does not raise."""
    return list(_checks(device))


def _checks(device: Device) -> Iterator[Check]:
    yield _try("state folder", lambda: _folder(device))
    for name, check in (
        ("address", lambda: _address(device)),
        ("server", lambda: _server(device)),
        ("certificate", lambda: _certificate(device)),
    ):
        if (device.folder / "client.json").exists():  # without it there is nothing to check
            yield _try(name, check)
    free = shutil.disk_usage(device.folder if device.folder.exists() else Path.home()).free
    yield Check(
        "disk", free > MIN_DISK_BYTES, f"{free / 1e9:.1f} GB free", "" if free > MIN_DISK_BYTES else "free 1 GB"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory > MIN_MEMORY_BYTES
    yield Check("memory", enough, f"{memory / 1e9:.1f} GB", "" if enough else "training needs 1 GB")
    torch = importlib.util.find_spec("torch") is not None
    yield Check("torch", torch, "installed" if torch else "missing", "" if torch else "pip install torch")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    flower = shutil.which("flower-supernode", path=path)
    yield Check("flower", flower is not None, flower or "missing", "" if flower else "pip install -U fedhet")


def _try(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except EnrollError as error:
        remedy = error.to_dict()["remedy"]
        found = ": ".join(filter(None, (error.code, error.to_dict()["cause"], error.detail)))
        return Check(name, False, found, remedy)
    except OSError as error:
        return Check(name, False, str(error), "check the address and the network")


def _folder(device: Device) -> str:
    about = device.about  # raises before a missing folder is created
    private_files.private_folder(device.folder)
    return f"{device.folder}: client {about.get('name', '?')}, {device.identity.node_id[:12]}"


def _address(device: Device) -> str:
    host, _, port = str(device.about["endpoint"]).rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
        return f"{device.about['endpoint']} is {found[0][4][0]}"


def _server(device: Device) -> str:
    answer = device.ask("whoami")
    skew = int(answer["server_time"] - device.clock())
    return f"{answer['state']}, clocks differ by {abs(skew)} s"


def _certificate(device: Device) -> str:
    leaf, now = device.leaf(), device.clock()
    if now > leaf.not_after:
        raise EnrollError("E201", f"{(now - leaf.not_after) / DAY:.1f} days ago")
    return f"{(leaf.not_after - now) / DAY:.1f} days left, renewed in {max(0.0, leaf.renew_at - now) / DAY:.1f}"
