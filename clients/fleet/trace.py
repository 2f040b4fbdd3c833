"""A fleet from a file: one row per client in JSON (a list of objects) or Parquet, with the fields of a profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhet.population.profile import Profile, ProfileError
from fedhet.population.roster import Clients


@dataclass(frozen=True)
class Trace:
    """A fleet from a file: one client profile per row.

    path: a .json or .parquet file. clients: number of rows to use, from the first; None: all.
    """

    path: str
    clients: int | None = None

    def build(self, seed: int) -> Clients:
        """The roster. Raises ProfileError naming file, row, field, value and unit."""
        rows = self._rows()
        count = len(rows) if self.clients is None else self.clients
        if not 1 <= count <= len(rows):
            raise ProfileError(f"{self.path} has {len(rows)} rows; clients={self.clients} must be between 1 and that")
        profiles = []
        for number, row in enumerate(rows[:count]):
            if not isinstance(row, Mapping):
                raise ProfileError(f"{self.path}, row {number}: not an object of profile fields")
            try:
                profiles.append(Profile.from_dict({k: v for k, v in row.items() if v is not None}))
            except (TypeError, ValueError) as error:
                raise ProfileError(f"{self.path}, row {number}: {error}") from None
        return Clients.from_profiles(profiles)

    def report(self, seed: int) -> str:
        """Empty: nothing is drawn."""
        return f"nothing is drawn: the rows of {Path(self.path).name}"

    def _rows(self) -> list[Any]:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise ProfileError(f"fleet.path={self.path} is no file")
        if path.suffix == ".parquet":
            try:
                from pyarrow import parquet
            except ModuleNotFoundError:
                raise ProfileError('reading Parquet needs pyarrow: python -m pip install "fedhet[data]"') from None
            try:
                rows: list[Any] = parquet.read_table(path).to_pylist()
            except ValueError as error:
                raise ProfileError(f"{self.path} is no Parquet: {error}") from None
            return rows
        try:
            loaded = json.loads(path.read_text())
        except ValueError as error:
            raise ProfileError(f"{self.path} is no JSON: {error}") from None
        if not isinstance(loaded, list):
            raise ProfileError(f"{self.path} must hold a list of objects, one per client")
        return loaded
