"""Tables from Parquet files in the Hugging Face layout, or from the hub.

A folder has train-*.parquet and test-*.parquet. Needs the extra `fedhet[data]` (pyarrow; datasets for the hub).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from clients.data.dataset import DataError

Table = Mapping[str, Sequence[Any]]
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Source:
    """A source of tables. `key` identifies the contents: digests of the files, or hub id and revision."""

    key: Any
    files: Mapping[str, Sequence[Path]]
    hub: str | None = None
    revision: str | None = None

    def table(self, split: str) -> Table:
        """A split's columns. Raises DataError naming the file or the hub id that cannot be read."""
        return self._downloaded(split) if self.hub else self._read(split)

    def _downloaded(self, split: str) -> Table:
        local = "; or set data.path=FOLDER, which holds train-*.parquet and test-*.parquet"
        library = require("datasets", local)
        try:
            loaded = library.load_dataset(self.hub, split=split, revision=self.revision)
        except (OSError, ValueError) as error:
            raise DataError(f"data.hub={self.hub}: its split {split!r} cannot be loaded: {error}{local}") from None
        columns: Table = loaded.with_format("arrow")[:].to_pydict()
        return columns

    def _read(self, split: str) -> Table:
        parquet, columns = require("pyarrow.parquet"), dict[str, list[Any]]()
        for file in self.files[split]:
            try:
                part = parquet.read_table(file).to_pydict()
            except (OSError, ValueError) as error:
                raise DataError(f"{file} is no readable Parquet file: {error}") from None
            if columns and part.keys() != columns.keys():
                raise DataError(f"{file} has the columns {list(part)}, the files before it {list(columns)}")
            for name, values in part.items():
                columns.setdefault(name, []).extend(values)
        return columns


def source(path: str | None, hub: str | None, revision: str | None) -> Source:
    """A local folder if one is given, else the hub. Raises DataError if neither is given or the data are missing."""
    if path is None:
        if hub is None:
            raise DataError("set data.path=FOLDER, which holds train-*.parquet and test-*.parquet, or data.hub=ID")
        return Source([hub, revision], {}, hub, revision)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.path={path} is no folder")
    files = {s: sorted(folder.rglob(f"{s}-*.parquet")) or sorted(folder.rglob(f"{s}.parquet")) for s in SPLITS}
    for split, found in files.items():
        if not found:
            there = sorted(p.name for p in folder.iterdir())[:8]
            raise DataError(f"data.path={folder} has no {split}-*.parquet; it holds {', '.join(there) or 'nothing'}")
    return Source([[_digest(f) for f in found] for found in files.values()], files)


def require(name: str, otherwise: str = "") -> Any:
    """Import an optional library. Raises DataError with how to install it, or the alternative."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        how = 'python -m pip install "fedhet[data]"'
        raise DataError(f"{name.split('.')[0]} is not installed: {how}{otherwise}") from None


def column(table: Table, given: str | None, usual: Sequence[str], what: str) -> Sequence[Any]:
    """The column named `given`, or the first that has a usual name. Raises DataError with the nearest name."""
    if given is None:
        for name in usual:
            if name in table:
                return table[name]
        raise DataError(f"no column is called {' or '.join(usual)}: set data.{what} to one of {', '.join(table)}")
    if given not in table:
        near = difflib.get_close_matches(given, table, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(table)}"
        raise DataError(f"data.{what}: there is no column {given!r}; {hint}")
    return table[given]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
