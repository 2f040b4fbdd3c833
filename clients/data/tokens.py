"""Text as token ids of a tokenizer of the transformers library, for language models or classifiers.

Without a label column each row's text becomes sequences of `length` tokens and the same shifted by one; with one, a row
is one sample of at most `length` tokens, padded at its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clients.data.dataset import DataError, Dataset, cached, classes_in_targets
from clients.data.parquet import TEXTS, labels_of, owners_of
from clients.data.source import SPLITS, Source, column, require, source


@dataclass(frozen=True)
class Tokens:
    """Text as token ids, for causal language models, or with a label column for classifiers.

    tokenizer: a folder or an id on the hub, the same as the model's. tokenizer_revision: its commit or tag there.
    label: column of a classifier's targets. Source and columns as in `Characters`.
    """

    tokenizer: str
    tokenizer_revision: str | None = None
    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    text: str | None = None
    label: str | None = None
    owner: str | None = None
    length: int = 128
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.length < 2:
            raise DataError(f"length={self.length} tokens: at least 2")

    def load(self) -> Dataset:
        found = source(self.path, self.hub, self.revision)
        key = {
            "source": found.key, "tokenizer": self._identity(), "text": self.text, "label": self.label,
            "owner": self.owner, "length": self.length, "decoder": 1,
        }  # fmt: skip
        classes = classes_in_targets if self.label else lambda arrays: int(arrays["vocabulary"][0])
        return cached("tokens", classes, key, lambda: self._decode(found), self.cache)

    def _identity(self) -> Any:
        """The tokenizer's identity: the contents of its files, or its id and revision."""
        folder = Path(self.tokenizer).expanduser()
        if not folder.is_dir():
            return [self.tokenizer, self.tokenizer_revision]
        kinds = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "*.model")
        files = sorted({file for kind in kinds for file in folder.glob(kind) if file.is_file()})
        return [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]

    def _decode(self, found: Source) -> Mapping[str, np.ndarray]:
        tokenizer = self._load()
        out: dict[str, np.ndarray] = {"vocabulary": np.array([len(tokenizer)])}
        for split in SPLITS:
            table = found.table(split)
            texts = column(table, self.text, TEXTS, "text")
            bad = next((n for n, t in enumerate(texts) if not isinstance(t, str)), None)
            if bad is not None or not len(texts):
                what = f"row {bad} is no text" if bad is not None else "the split is empty"
                raise DataError(f"{split}: a text column must hold text: {what}")
            counts: Sequence[int] = [1] * len(texts)
            if self.label:
                x = self._padded(tokenizer, texts)
                y = labels_of(column(table, self.label, (), "label"), split)
            else:
                x, y, counts = self._windows(tokenizer, texts, split)
            out |= {f"x_{split}": x, f"y_{split}": y}
            if self.owner:
                out[f"owner_{split}"] = np.repeat(owners_of(table, self.owner, split), counts)
        if self.label:
            names = np.unique(np.concatenate([out["y_train"], out["y_test"]]))
            out |= {f"y_{split}": np.searchsorted(names, out[f"y_{split}"]) for split in SPLITS}
        return out

    def _load(self) -> Any:
        library = require("transformers")
        try:
            return library.AutoTokenizer.from_pretrained(self.tokenizer, revision=self.tokenizer_revision)
        except (OSError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            raise DataError(f"data.tokenizer={self.tokenizer} cannot be loaded: {why}") from None

    def _windows(
        self, tokenizer: Any, texts: Sequence[str], split: str
    ) -> tuple[np.ndarray, np.ndarray, Sequence[int]]:
        """Sequences, the same shifted by one, and the number per text; consecutive ones share a token."""
        rows, counts = [np.empty((0, self.length + 1), np.int64)], []
        for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
            numbers = np.asarray(ids, dtype=np.int64)
            starts = np.arange(0, len(numbers) - self.length, self.length)
            rows.append(numbers[starts[:, None] + np.arange(self.length + 1)])
            counts.append(len(starts))
        whole = np.concatenate(rows)
        if not len(whole):
            raise DataError(f"no text in {split} is longer than length={self.length} tokens: lower data.length")
        return whole[:, :-1], whole[:, 1:], counts

    def _padded(self, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
        if tokenizer.pad_token_id is None:
            raise DataError(f"data.tokenizer={self.tokenizer} has no padding token, which texts of one label need")
        tokenizer.padding_side = "right"
        found = tokenizer(list(texts), truncation=True, max_length=self.length, padding="max_length")
        return np.asarray(found["input_ids"], dtype=np.int64)
