"""Images and character sequences from Parquet tables, decoded once.

Images are float32 (channels, height, width) in [0, 1]. Text is split into character sequences; the vocabulary is that
of the training split. A role, writer or user column gives the natural owners.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clients.data.dataset import DataError, Dataset, cached, classes_in_targets
from clients.data.source import SPLITS, Source, Table, column, require, source

IMAGES, LABELS, TEXTS = ("image", "img"), ("label", "labels", "fine_label"), ("text",)
MODES = {"L": "L", "RGB": "RGB", "1": "L", "LA": "L", "P": "RGB", "RGBA": "RGB", "CMYK": "RGB"}
"""Conversion of image modes; other modes (16 bits, floating point) are refused."""


@dataclass(frozen=True)
class Images:
    """Labelled images from Parquet files, or from the Hugging Face hub.

    path: a local folder. hub, revision: the data set's id on the hub, without a path. Columns are found by their usual
    names if not given. Labels are numbered in ascending order, 0 to classes - 1.
    """

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    image: str | None = None
    label: str | None = None
    owner: str | None = None
    cache: str | None = None

    def load(self) -> Dataset:
        found = source(self.path, self.hub, self.revision)
        key = {"source": found.key, "image": self.image, "label": self.label, "owner": self.owner, "decoder": 2}
        return cached("images", classes_in_targets, key, lambda: self._decode(found), self.cache)

    def _decode(self, found: Source) -> Mapping[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for split in SPLITS:
            table = found.table(split)
            images, labels = column(table, self.image, IMAGES, "image"), column(table, self.label, LABELS, "label")
            if not len(images):
                raise DataError(f"the split {split} is empty")
            out[f"x_{split}"], out[f"y_{split}"] = _stack(images, split), labels_of(labels, split)
            if self.owner:
                out[f"owner_{split}"] = owners_of(table, self.owner, split)
        names = np.unique(np.concatenate([out["y_train"], out["y_test"]]))
        return out | {f"y_{split}": np.searchsorted(names, out[f"y_{split}"]) for split in SPLITS}


@dataclass(frozen=True)
class Characters:
    """Next-character prediction: sequences of `length` characters, and the same shifted by one.

    They are consecutive parts of each row's text. The remainder of a text, and texts not longer than `length`, are not
    used. Columns and source as in `Images`.
    """

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    text: str | None = None
    owner: str | None = None
    length: int = 80
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.length < 2:
            raise DataError(f"length={self.length} characters: at least 2")

    def load(self) -> Dataset:
        found = source(self.path, self.hub, self.revision)
        key = {"source": found.key, "text": self.text, "owner": self.owner, "length": self.length, "decoder": 2}
        return cached(
            "characters", lambda a: int(a["vocabulary"].size) + 1, key, lambda: self._decode(found), self.cache
        )

    def _decode(self, found: Source) -> Mapping[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for split in SPLITS:  # train first: it has the vocabulary
            table = found.table(split)
            texts = column(table, self.text, TEXTS, "text")
            bad = next((n for n, t in enumerate(texts) if not isinstance(t, str)), None)
            if bad is not None:
                raise DataError(f"{split}, row {bad}: a text column must hold text, not {type(texts[bad]).__name__}")
            if split == "train":
                out["vocabulary"] = np.array([ord(c) for c in sorted(set().union(*texts))], dtype=np.int64)
            windows = [_windows(text, out["vocabulary"], self.length) for text in texts]
            rows = np.concatenate([np.empty((0, self.length + 1), np.int64), *windows])
            if not len(rows):
                raise DataError(f"no text in {split} is longer than length={self.length} characters: lower data.length")
            out |= {f"x_{split}": rows[:, :-1], f"y_{split}": rows[:, 1:]}
            if self.owner:
                out[f"owner_{split}"] = np.repeat(owners_of(table, self.owner, split), [len(w) for w in windows])
        return out


def _windows(text: str, vocabulary: np.ndarray, length: int) -> np.ndarray:
    """(sequences, length + 1) character numbers, consecutive rows sharing one; 0 is a character never trained on."""
    points = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)
    place = np.minimum(np.searchsorted(vocabulary, points), max(len(vocabulary) - 1, 0))
    codes = np.where(vocabulary[place] == points, place + 1, 0) if len(vocabulary) else points * 0
    starts = np.arange(0, len(codes) - length, length)
    return np.asarray(codes[starts[:, None] + np.arange(length + 1)])


def _stack(images: Sequence[Any], split: str) -> np.ndarray:
    first = _pixels(images[0], f"{split}, row 0")
    out = np.empty((len(images), *first.shape), np.float32)
    for n, image in enumerate(images):
        pixels = _pixels(image, f"{split}, row {n}")
        if pixels.shape != first.shape:
            raise DataError(f"{split}, row {n}: an image of shape {pixels.shape} among images of shape {first.shape}")
        out[n] = pixels
    return out


def _pixels(value: Any, where: str) -> np.ndarray:
    """(channels, height, width) float32 in [0, 1] of an encoded image, or of {bytes, path}."""
    library = require("PIL.Image")
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise DataError(f"{where}: an image column must hold encoded bytes, not {type(data).__name__}")
    try:
        with library.open(io.BytesIO(data)) as image:
            mode = MODES.get(image.mode)
            if mode is None:
                raise DataError(f"{where}: images of mode {image.mode} are not supported, only {', '.join(MODES)}")
            pixels = np.asarray(image.convert(mode), dtype=np.float32) / 255
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
        raise DataError(f"{where}: the image cannot be decoded: {error}") from None
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)


def labels_of(values: Sequence[Any], split: str) -> np.ndarray:
    """Labels as they are, integers or names."""
    for kind in (int, str):
        if all(isinstance(v, kind) for v in values):
            return np.asarray(values, dtype=np.int64 if kind is int else np.str_)
    raise DataError(f"{split}: a label column must hold whole numbers or names, all of one kind and none missing")


def owners_of(table: Table, name: str, split: str) -> np.ndarray:
    values = column(table, name, (), "owner")
    if any(v is None for v in values):
        raise DataError(f"{split}: the owner column {name!r} has rows without an owner")
    return np.asarray([str(v) for v in values])
