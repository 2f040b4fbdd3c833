"""config.yaml of a run folder: the resolved configuration after a line with its hash.

The configuration of a run does not change. With an edited file a resumed run would continue with other values than it
began with, and the result would not show it; so the first line is the SHA-256 of all that follows. A file that does not
match it is refused, with the differences to the configuration in the checkpoint, if there is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fedhet import former_names
from fedhet.system.atomic_file import DamagedError

HEAD = "# A run keeps its configuration. SHA-256 of what follows: "
MAX_DIFFERENCES = 5
"""Differences named in an error."""


def text(resolved: Mapping[str, Any]) -> str:
    """The file's content."""
    body = OmegaConf.to_yaml(OmegaConf.create(dict(resolved)))
    return f"{HEAD}{_digest(body.encode())}\n{body}"


def read(path: Path, remembered: Mapping[str, Any] | None = None, *, strict: bool = True) -> dict[str, Any]:
    """The configuration in a file. `remembered` is the one in the run's checkpoint; without `strict` a file without a
    hash is accepted.

    Raises DamagedError if the file was altered.
    """
    data = path.read_bytes()
    head, _, body = data.partition(b"\n")
    signed = head.startswith(HEAD.encode())
    if signed or strict:
        what = f"{path} was changed after the run began" if signed else f"{path} lacks its first line, a hash"
        if not signed or head.decode(errors="replace").removeprefix(HEAD).strip() != _digest(body):
            detail = _describe(data, remembered)
            raise DamagedError(
                f"{what}{detail}; a run keeps its configuration: put the file back, or start another run (the number "
                "of worker processes may be changed by: fedhet run --resume RUN_DIR workers=N)"
            )
    resolved = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not isinstance(resolved, dict):
        raise DamagedError(f"{path} holds no configuration")
    return dict(former_names.current({str(key): value for key, value in resolved.items()}))


def differences(now: Mapping[str, Any], before: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One text per key whose values differ, with both values."""
    found = []
    for key in sorted({*now, *before}, key=str):
        a, b = now.get(key, "absent"), before.get(key, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}={a!r}, was {b!r}")
    return found


def _describe(data: bytes, remembered: Mapping[str, Any] | None) -> str:
    try:
        now = yaml.safe_load(data.decode())
    except (ValueError, yaml.YAMLError) as error:
        return f" and is not YAML ({' '.join(str(error).split())[:120]})"
    if not isinstance(now, dict):
        return " and holds no configuration"
    if remembered is None:
        return ""
    found = differences(now, remembered)
    more = f" and {len(found) - MAX_DIFFERENCES} more" if len(found) > MAX_DIFFERENCES else ""
    return f": {'; '.join(found[:MAX_DIFFERENCES])}{more}" if found else ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
