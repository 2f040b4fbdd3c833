"""Text by a tokenizer that the test makes: sequences, padded samples, owners, and refused input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clients.data.dataset import DataError
from clients.data.tokens import Tokens

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ("[PAD]", "[UNK]", "a", "b", "c", "d", "e")


def tokenizer(folder: Path, words: tuple[str, ...] = WORDS, **options: Any) -> str:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", **options).save_pretrained(folder)
    return str(folder)


def write(folder: Path, **columns: list[Any]) -> str:
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        parquet.write_table(pyarrow.table(columns), folder / f"{split}-0.parquet")
    return str(folder)


@pytest.fixture
def made(tmp_path):
    """Tokens of two texts, seven and four words long."""
    path = write(tmp_path / "data", text=["a b c d e a b", "e d zz b"], who=["x", "y"], mood=["glad", "cross"])
    name = tokenizer(tmp_path / "tokenizer", pad_token="[PAD]")

    def make(**options: Any) -> Any:
        return Tokens(**{"tokenizer": name, "path": path, "length": 3, "cache": str(tmp_path / "cache"), **options})

    return make


def test_texts_are_cut_into_sequences_and_the_same_moved_by_one(made):
    data = made(owner="who").load()
    assert data.x_train.tolist() == [[2, 3, 4], [5, 6, 2], [6, 5, 1]]
    assert data.y_train.tolist() == [[3, 4, 5], [6, 2, 3], [5, 1, 3]]
    assert data.owner_train.tolist() == ["x", "x", "y"] and data.classes == len(WORDS)
    assert data.x_train.dtype == torch.int64


def test_a_labelled_text_is_one_sample_cut_or_padded_at_its_end(made):
    data = made(label="mood", length=6, owner="who").load()
    assert data.x_train.tolist() == [[2, 3, 4, 5, 6, 2], [6, 5, 1, 3, 0, 0]]
    assert data.y_train.tolist() == [1, 0] and data.classes == 2 and data.owner_train.tolist() == ["x", "y"]


def test_another_tokenizer_in_the_same_folder_is_another_data_set(made, tmp_path):
    before = made().load()
    tokenizer(tmp_path / "tokenizer", (*WORDS, "zz"), pad_token="[PAD]")
    after = made().load()
    assert after.x_train.tolist()[2] == [6, 5, 7] and after.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"length": 1}, "length=1"),
        ({"length": 50}, "length=50 tokens: lower data.length"),
        ({"text": "txt"}, "did you mean 'text'"),
        ({"label": "moods"}, "did you mean 'mood'"),
        ({"text": "number"}, "must hold text"),
    ],
)
def test_what_is_wrong_is_named(made, tmp_path, options, told):
    write(tmp_path / "data", text=["a b c d e"], mood=["glad"], number=[1])
    with pytest.raises(DataError, match=told):
        made(**options).load()


def test_a_tokenizer_that_is_not_there_or_cannot_pad_is_named(made, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.tokenizer=.*empty cannot be loaded"):
        made(tokenizer=str(tmp_path / "empty")).load()
    with pytest.raises(DataError, match="no padding token"):
        made(tokenizer=tokenizer(tmp_path / "bare"), label="mood").load()
