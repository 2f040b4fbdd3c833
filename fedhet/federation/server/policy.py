"""The operator's enrolment policy: lifetimes, which device classes need approval, minimum memory, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError


@dataclass(frozen=True, slots=True)
class Policy:
    """Stored in `policy.yaml`. The names contain the units.

    `client_days` has one entry per device class; no other classes exist. A certificate that expired less than
    `grace_days` ago can be renewed and used for nothing else. Classes in `auto_approve` need no operator. One owner has
    at most `most_per_owner` clients, which bounds how many of them can collude. A node may send `messages_per_minute`
    through the TLS proxy. `failures_per_hour` and `requests_per_minute` apply to each unauthenticated address and to
    each enrolled client. One address may have `connections_per_address`, all together `connections`; idle connections
    are closed for new ones."""

    client_days: Mapping[str, float] = field(default_factory=lambda: {"edge": 7.0, "silo": 30.0})
    grace_days: float = 7.0
    token_hours: float = 24.0
    skew_s: float = 60.0
    auto_approve: tuple[str, ...] = ()
    min_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    min_version: str = "0.1.0"
    failures_per_hour: int = 5
    requests_per_minute: int = 240
    max_body_bytes: int = 65_536
    most_clients: int = 10_000
    most_per_owner: int = 50
    messages_per_minute: int = 6_000
    order_days: float = 30.0
    connections_per_address: int = 256
    connections: int = 2_000

    def __post_init__(self) -> None:
        counts = ("failures_per_hour", "requests_per_minute", "most_clients", "most_per_owner", "messages_per_minute")
        connection_limits = ("connections_per_address", "connections")
        for name in ("grace_days", "token_hours", "skew_s", "order_days", *counts, *connection_limits):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not self.min_version[:1].isdecimal():
            raise ValueError(f"min_version={self.min_version!r} must be a version such as 0.1.0")
        for device_class, days in self.client_days.items():
            if not 0 < days <= 365:
                raise ValueError(f"client_days.{device_class}={days} must be in (0, 365]")
        for name in ("auto_approve", "min_memory_bytes"):
            for device_class in getattr(self, name):
                if device_class not in self.client_days:
                    raise ValueError(
                        f"{name} names the class {device_class!r}; client_days has {sorted(self.client_days)}"
                    )

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a policy file. Raises EnrollError E306 for an unknown key or an invalid value, E324 for a damaged
        file."""
        if not path.exists():
            raise EnrollError("E306", f"{path} is missing: run fedhet ca init")
        with private_files.sound(path):
            if not path.read_text().strip():
                raise ValueError("it is empty")  # an empty file is damaged, not a policy of defaults
            given = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        known = {f.name for f in fields(cls)}
        if not isinstance(given, dict) or not set(given) <= known:
            raise EnrollError("E306", f"{path}: the keys are {sorted(known)}")
        values: dict[str, Any] = {str(k): tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise EnrollError("E306", f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the file with every key."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        private_files.write_file(path, OmegaConf.to_yaml(OmegaConf.create(values)))
