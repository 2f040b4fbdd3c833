"""Data sets in the Hugging Face Parquet layout: a folder with train-*.parquet and test-*.parquet, or a hub id.

Images are decoded to float32 (channels, height, width) in [0, 1]. Text is cut into character sequences; the vocabulary
is that of the training split, and a role, writer or user column gives natural clients. Needs the extra `fedhet[data]`.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clients.data.dataset import DataError, Dataset, cached, classes_in_targets

IMAGES, LABELS = ("image", "img"), ("label", "fine_label", "labels")


@dataclass(frozen=True)
class Images:
    """`path` is a local folder, or `hub` an id that `datasets` downloads. Columns are found by name if not given."""

    path: str | None = None
    hub: str | None = None
    image: str | None = None
    label: str | None = None
    owner: str | None = None
    cache: str | None = None

    def load(self) -> Dataset:
        source = _source(self.path, self.hub)
        key = {"source": source.key, "image": self.image, "label": self.label, "owner": self.owner}
        return cached("images", classes_in_targets, key, lambda: self._decode(source), self.cache)

    def _decode(self, source: Source) -> Mapping[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            table = source.table(split)
            image, label = _column(table, self.image, IMAGES), _column(table, self.label, LABELS)
            out[f"x_{split}"] = np.stack([_pixels(v, f"{split}, row {n}") for n, v in enumerate(table[image])])
            out[f"y_{split}"] = np.asarray(table[label], dtype=np.int64)
            if self.owner:
                out[f"owner_{split}"] = np.asarray([str(v) for v in table[_column(table, self.owner, ())]])
        return out


@dataclass(frozen=True)
class Characters:
    """Sequences of `length` characters and the same moved by one, cut from each owner's text every `length`."""

    path: str | None = None
    hub: str | None = None
    text: str = "text"
    owner: str = "character_id"
    length: int = 80
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.length < 2:
            raise DataError(f"length={self.length} characters: at least 2")

    def load(self) -> Dataset:
        source = _source(self.path, self.hub)
        key = {"source": source.key, "text": self.text, "owner": self.owner, "length": self.length}
        return cached(
            "characters", lambda a: int(a["vocabulary"].size) + 1, key, lambda: self._decode(source), self.cache
        )

    def _decode(self, source: Source) -> Mapping[str, np.ndarray]:
        train = source.table("train")
        alphabet = np.array(sorted(set("".join(train[_column(train, self.text, ())]))))
        number = {c: n + 1 for n, c in enumerate(alphabet)}  # 0 stands for characters the training split never has
        out: dict[str, np.ndarray] = {"vocabulary": alphabet}
        for split in ("train", "test"):
            table = source.table(split)
            x, y, owners = [], [], []
            for text, owner in zip(
                table[_column(table, self.text, ())], table[_column(table, self.owner, ())], strict=True
            ):
                codes = np.array([number.get(c, 0) for c in text], dtype=np.int64)
                for at in range(0, len(codes) - self.length, self.length):
                    x.append(codes[at : at + self.length])
                    y.append(codes[at + 1 : at + 1 + self.length])
                    owners.append(str(owner))
            if not x:
                raise DataError(f"no text in {split} is longer than length={self.length} characters")
            out |= {f"x_{split}": np.stack(x), f"y_{split}": np.stack(y), f"owner_{split}": np.asarray(owners)}
        return out


@dataclass(frozen=True)
class Source:
    """Where tables come from: files, or a hub id."""

    key: Any
    files: Mapping[str, Sequence[Path]]
    hub: str | None = None

    def table(self, split: str) -> Mapping[str, list[Any]]:
        """A split's columns. Raises DataError naming the file that cannot be read."""
        if self.hub:
            loaded = _import("datasets").load_dataset(self.hub, split=split)
            return dict(loaded.with_format("arrow")[:].to_pydict())
        parquet = _import("pyarrow.parquet")
        columns: dict[str, list[Any]] = {}
        for file in self.files[split]:
            try:
                part = parquet.read_table(file).to_pydict()
            except (OSError, ValueError) as error:
                raise DataError(f"{file} is no readable Parquet file: {error}") from None
            for name, values in part.items():
                columns.setdefault(name, []).extend(values)
        return columns


def _source(path: str | None, hub: str | None) -> Source:
    if (path is None) == (hub is None):
        raise DataError("give data.path=FOLDER (Parquet files on this machine) or data.hub=ID, one of them")
    if hub is not None:
        return Source(hub, {}, hub)
    assert path is not None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.path={path} is no folder")
    files = {
        s: sorted(folder.rglob(f"{s}-*.parquet")) or sorted(folder.rglob(f"{s}.parquet")) for s in ("train", "test")
    }
    for split, found in files.items():
        if not found:
            raise DataError(
                f"{folder} has no {split}-*.parquet; it holds {sorted(p.name for p in folder.iterdir())[:8]}"
            )
    return Source([_digest(f) for found in files.values() for f in found], files)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise DataError(f'{name} is not installed: python -m pip install "fedhet[data]"') from None


def _column(table: Mapping[str, Any], given: str | None, guesses: Sequence[str]) -> str:
    if given is None:
        for name in guesses:
            if name in table:
                return name
        raise DataError(f"none of the columns {list(guesses)} is there; the file has {list(table)}")
    if given not in table:
        near = difflib.get_close_matches(given, table, 1)
        raise DataError(
            f"there is no column {given!r}; " + (f"did you mean {near[0]!r}?" if near else f"{list(table)}")
        )
    return given


def _pixels(value: Any, where: str) -> np.ndarray:
    image_module = _import("PIL.Image")
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise DataError(f"{where}: an image column must hold encoded bytes")
    try:
        with image_module.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image, dtype=np.float32) / 255
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot decode the image: {error}") from None
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
