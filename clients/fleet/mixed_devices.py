"""Twelve heterogeneous clients: phones, laptops, edge boxes, a workstation, a rack. The default fleet.

The figures are round numbers, chosen so that speed, memory, network, availability and reliability all differ; they
describe no product.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhet.population.profile import Jitter, Profile
from fedhet.population.roster import Clients

MB, GB = 1e6, 1e9
#        name            class        s/step  up MB/s  down MB/s  latency  online [s) of 60  dropout  memory GB
TABLE = (
    ("rack-1", "server", 0.010, 50.0, 50.0, 0.005, None, 0.0, 64.0),
    ("workstation-1", "desktop", 0.016, 12.0, 25.0, 0.010, None, 0.0, 16.0),
    ("workstation-2", "desktop", 0.020, 12.0, 25.0, 0.010, None, 0.0, 16.0),
    ("laptop-1", "laptop", 0.030, 3.0, 12.0, 0.020, None, 0.0, 8.0),
    ("laptop-2", "laptop", 0.036, 3.0, 12.0, 0.020, (0, 45), 0.0, 8.0),
    ("laptop-old", "laptop", 0.070, 1.5, 6.0, 0.025, None, 0.0, 4.0),
    ("edge-box-1", "edge", 0.050, 1.0, 4.0, 0.030, None, 0.0, 2.0),
    ("edge-box-2", "edge", 0.055, 1.0, 4.0, 0.030, None, 0.0, 2.0),
    ("phone-1", "phone", 0.060, 0.8, 5.0, 0.050, None, 0.0, 4.0),
    ("phone-2", "phone", 0.075, 0.5, 3.0, 0.060, (10, 60), 0.0, 3.0),
    ("phone-3", "phone", 0.090, 0.5, 3.0, 0.060, None, 0.1, 3.0),
    ("phone-old", "phone", 0.120, 0.25, 1.0, 0.080, None, 0.0, 1.0),
)


@dataclass(frozen=True)
class MixedDevices:
    """Twelve heterogeneous clients: phones, laptops, edge boxes, a workstation, a rack; repeated for more.

    slower: factor on every step time.
    """

    clients: int = 12
    slower: float = 1.0
    jitter_cv: float = 0.05

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients={self.clients} must be at least 1")
        if not self.slower > 0:
            raise ValueError(f"slower={self.slower} must be positive")

    def build(self, seed: int) -> Clients:
        """The roster; it does not depend on `seed`."""
        table = Clients.from_profiles([self._profile(n) for n in range(min(self.clients, len(TABLE)))])
        if self.clients <= len(TABLE):
            return table
        laps = -(-self.clients // len(TABLE))  # columns and no profiles: there may be millions of clients
        columns = {
            key: (column * laps)[: self.clients] if isinstance(column, list) else column
            for key, column in table.columns.items()
        }
        columns["name"] = [_name(n) for n in range(self.clients)]
        return Clients.from_columns(self.clients, columns)

    def report(self, seed: int) -> str:
        """Empty: nothing is drawn."""
        return "nothing is drawn: the table is fixed"

    def _profile(self, number: int) -> Profile:
        _, kind, step, up, down, latency, online, dropout, memory = TABLE[number]
        return Profile(
            name=_name(number),
            device_class=kind,
            sec_per_step=step * self.slower,
            compute_jitter=Jitter("normal", self.jitter_cv),
            memory_bytes=memory * GB,
            uplink_bytes_per_s=up * MB,
            downlink_bytes_per_s=down * MB,
            latency_s=latency,
            availability=(online,) if online else (),
            availability_period_s=60.0 if online else None,
            dropout_prob=dropout,
        )


def _name(number: int) -> str:
    lap, at = divmod(number, len(TABLE))
    return f"{TABLE[at][0]}-{lap + 1}" if lap else TABLE[at][0]
