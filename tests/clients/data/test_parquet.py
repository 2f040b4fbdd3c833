"""Parquet files: images and text are read exactly, and errors name the broken file."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.data.dataset import DataError
from clients.data.natural import Natural
from clients.data.parquet import Characters, Images

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
image_module = pytest.importorskip("PIL.Image")


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    out = io.BytesIO()
    image = image_module.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, "PNG")
    return out.getvalue()


def write(folder: Path, name: str, **columns: list[Any]) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, grey: np.ndarray) -> Path:
    """Four training images in two files and two test images, {bytes, path} as Hugging Face writes them."""
    cells = [{"bytes": png(p), "path": None} for p in grey]
    write(tmp_path / "data", "train-00000-of-00002", img=cells[:3], label=[7, 3, 3])
    write(tmp_path / "data", "train-00001-of-00002", img=cells[3:4], label=[5])
    write(tmp_path / "data", "test-00000-of-00001", img=cells[4:], label=[5, 7])
    return tmp_path / "data"


def images(folder: Path, **options: Any) -> Any:
    return Images(path=str(folder), cache=str(folder.parent / "cache"), **options).load()


def text(folder: Path, **options: Any) -> Any:
    return Characters(path=str(folder), cache=str(folder.parent / "cache"), **options).load()


def test_images_come_back_pixel_for_pixel_from_all_files(folder, grey):
    data = images(folder)
    assert np.array_equal(data.x_train.numpy(), grey[:4, None].astype(np.float32) / 255)
    assert np.array_equal(data.x_test.numpy(), grey[4:, None].astype(np.float32) / 255)
    assert data.input_shape == (1, 5, 4)


def test_labels_are_numbered_from_zero(folder):
    data = images(folder)
    assert data.y_train.tolist() == [2, 0, 0, 1] and data.y_test.tolist() == [1, 2]
    assert data.classes == 3


def test_labels_can_be_names(folder, grey):
    write(folder, "train-00000-of-00002", img=[{"bytes": png(p)} for p in grey[:3]], label=["dog", "cat", "cat"])
    write(folder, "train-00001-of-00002", img=[{"bytes": png(grey[3])}], label=["ape"])
    write(folder, "test-00000-of-00001", img=[{"bytes": png(grey[4])}], label=["dog"])
    assert images(folder).y_train.tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_image_modes_become_grey_or_colour(tmp_path, mode, channels):
    white = np.full((4, 4, 3), 255, np.uint8)
    for split in ("train", "test"):
        write(tmp_path / "data", split, image=[{"bytes": png(white, mode)}], label=[0])
    data = images(tmp_path / "data")
    assert data.input_shape == (channels, 4, 4)
    assert (data.x_train == 1).all()  # a palette's numbers are not its colours


def test_colour_images_keep_their_channels_apart(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    for split in ("train", "test"):
        write(tmp_path / "data", split, image=[png(pixels)], label=[0])  # bare bytes do as well
    assert np.array_equal(images(tmp_path / "data").x_train[0].numpy(), pixels.transpose(2, 0, 1).astype("f4") / 255)


def test_an_owner_column_gives_natural_clients(folder, grey):
    cells = [{"bytes": png(p)} for p in grey]
    for name, rows in (("train-00000-of-00002", slice(3)), ("train-00001-of-00002", slice(3, 4))):
        write(folder, name, img=cells[rows], label=[0, 1, 1][: len(cells[rows])], writer=[9, 8, 9][: len(cells[rows])])
    write(folder, "test-00000-of-00001", img=cells[4:], label=[0, 1], writer=[8, 8])
    data = images(folder, owner="writer")
    partition = Natural().split(data, 2, 0)
    assert partition.counts.tolist() == [3, 1] and partition.test.counts.tolist() == [0, 2]


def test_files_are_decoded_once_and_again_when_they_change(folder, grey, monkeypatch):
    first = images(folder)
    monkeypatch.setattr(Images, "_decode", lambda *_: pytest.fail("decoded again"))
    assert images(folder).fingerprint == first.fingerprint
    monkeypatch.undo()
    write(folder, "test-00000-of-00001", img=[{"bytes": png(grey[0])}], label=[3])
    changed = images(folder)
    assert changed.fingerprint != first.fingerprint and len(changed.x_test) == 1


def test_text_becomes_sequences_and_the_same_moved_by_one(tmp_path):
    write(tmp_path / "data", "train", text=["abcabcabc", "cc", "bbbbb"], who=["x", "y", "z"])
    write(tmp_path / "data", "test", text=["abzab"], who=["z"])
    data = text(tmp_path / "data", length=4, owner="who")
    assert data.classes == 4  # a, b, c and 0 for what training never shows
    assert data.x_train.tolist() == [[1, 2, 3, 1], [2, 3, 1, 2], [2, 2, 2, 2]]
    assert data.y_train.tolist() == [[2, 3, 1, 2], [3, 1, 2, 3], [2, 2, 2, 2]]
    assert data.x_test.tolist() == [[1, 2, 0, 1]] and data.y_test.tolist() == [[2, 0, 1, 2]]
    assert data.owner_train.tolist() == ["x", "x", "z"] and data.owner_test.tolist() == ["z"]
    assert str(data.x_train.dtype) == "torch.int64"


def test_sequences_restore_the_text_even_outside_the_basic_plane(tmp_path):
    line = "Thou art 🎭, naïve “ö” — 𝔉" * 3
    for split in ("train", "test"):
        write(tmp_path / "data", split, text=[line])
    data = text(tmp_path / "data", length=7)
    alphabet = sorted(set(line))
    whole = [int(data.x_train[0, 0]), *data.y_train.flatten().tolist()]
    assert "".join(alphabet[n - 1] for n in whole) == line[: len(whole)]
    assert len(line) - len(whole) < 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "imgs"}, "data.image: there is no column 'imgs'; did you mean 'img'?"),
        ({"label": "zzz"}, "data.label: there is no column 'zzz'; there are img, label"),
        ({"owner": "lable"}, "data.owner: there is no column 'lable'; did you mean 'label'?"),
        ({"image": "label"}, "train, row 0: an image column must hold encoded bytes, not int"),
        ({"label": "img"}, "train: a label column must hold whole numbers or names"),
    ],
)
def test_a_wrong_column_is_named_with_the_nearest(folder, options, message):
    with pytest.raises(DataError) as error:
        images(folder, **options)
    assert message in str(error.value)


def test_a_column_that_cannot_be_guessed_is_asked_for(folder):
    with pytest.raises(DataError, match=r"no column is called text: set data\.text to one of img, label"):
        text(folder)


@pytest.mark.parametrize(
    "cell", [b"no image", png(np.arange(64, dtype=np.uint8).reshape(8, 8))[:50]], ids=["noise", "cut off"]
)
def test_a_broken_image_names_its_row(tmp_path, cell):
    for split in ("train", "test"):
        write(tmp_path / "data", split, image=[png(np.zeros((3, 3), np.uint8)), cell], label=[0, 1])
    with pytest.raises(DataError, match="train, row 1: the image cannot be decoded"):
        images(tmp_path / "data")


def test_sixteen_bits_are_refused_rather_than_cut(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "data", split, image=[png(np.full((3, 3), 40000, np.uint16))], label=[0])
    with pytest.raises(DataError, match="mode I;16"):
        images(tmp_path / "data")


def test_images_of_two_sizes_are_refused(tmp_path):
    cells = [png(np.zeros((3, 3), np.uint8)), png(np.zeros((3, 4), np.uint8))]
    for split in ("train", "test"):
        write(tmp_path / "data", split, image=cells, label=[0, 1])
    with pytest.raises(DataError, match=r"row 1: an image of shape \(1, 3, 4\) among images of shape \(1, 3, 3\)"):
        images(tmp_path / "data")


@pytest.mark.parametrize("values", [[None, 1], [0.5, 1.0]])
def test_labels_that_are_none_or_fractions_are_refused(tmp_path, values):
    cells = [png(np.zeros((3, 3), np.uint8))] * 2
    for split in ("train", "test"):
        write(tmp_path / "data", split, image=cells, label=values)
    with pytest.raises(DataError, match="train: a label column must hold"):
        images(tmp_path / "data")


def test_text_and_owners_must_be_there(tmp_path):
    write(tmp_path / "data", "train", text=["abc", None], who=["x", None])
    write(tmp_path / "data", "test", text=["abc", "abc"], who=["x", "y"])
    with pytest.raises(DataError, match="train, row 1: a text column must hold text, not NoneType"):
        text(tmp_path / "data", length=2)
    write(tmp_path / "data", "train", text=["abc", "abc"], who=["x", None])
    with pytest.raises(DataError, match="'who' has rows without an owner"):
        text(tmp_path / "data", length=2, owner="who")


def test_text_that_is_too_short_says_which_knob(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "data", split, text=["abcd"])
    assert text(tmp_path / "data", length=3).x_train.tolist() == [[1, 2, 3]]
    with pytest.raises(DataError, match=r"train is longer than length=4 characters: lower data\.length"):
        text(tmp_path / "data", length=4)
    with pytest.raises(DataError, match="length=1"):
        Characters(length=1)


def test_what_is_missing_is_named(tmp_path, folder):
    with pytest.raises(DataError, match=r"set data\.path=FOLDER.*or data\.hub=ID"):
        Images().load()
    with pytest.raises(DataError, match=r"data\.path=.*nowhere is no folder"):
        Images(path=str(tmp_path / "nowhere")).load()
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"has no test-\*\.parquet; it holds train-00000-of-00002\.parquet"):
        images(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it holds nothing"):
        images(tmp_path / "empty")


def test_a_damaged_file_is_named(folder):
    file = folder / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet is no readable Parquet file"):
        images(folder)


def test_files_of_one_split_must_agree(folder, grey):
    write(folder, "train-00001-of-00002", img=[{"bytes": png(grey[0])}], tag=[1])
    with pytest.raises(DataError, match=r"train-00001.*has the columns \['img', 'tag'\], the files before it"):
        images(folder)


def test_an_empty_split_is_an_error(folder):
    write(folder, "test-00000-of-00001", img=[], label=[])
    with pytest.raises(DataError, match="the split test is empty"):
        images(folder)


def test_a_missing_extra_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(DataError) as error:
        Images(hub="somebody/something", cache=str(tmp_path)).load()
    assert str(error.value).startswith(
        'datasets is not installed: python -m pip install "fedhet[data]"; or set data.path='
    )


def test_the_hub_is_asked_for_a_revision_and_its_tables_are_read_like_files(folder, monkeypatch):
    """A stand-in for the library `datasets` with the calls that are used; the folder then gives the same data."""
    asked = []

    class Split:
        def __init__(self, split: str) -> None:
            self.tables = [parquet.read_table(f) for f in sorted(folder.glob(f"{split}-*"))]

        def with_format(self, kind: str) -> Split:
            assert kind == "arrow"
            return self

        def __getitem__(self, rows: slice) -> Any:
            assert rows == slice(None)
            return pyarrow.concat_tables(self.tables)

    def load_dataset(hub: str, *, split: str, revision: str | None) -> Split:
        asked.append((hub, split, revision))
        if hub == "no/one":
            raise ValueError("Unknown split")
        return Split(split)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    cache = str(folder.parent / "cache")
    data = Images(hub="some/one", revision="v1", cache=cache).load()
    assert data.fingerprint == images(folder).fingerprint
    assert asked == [("some/one", "train", "v1"), ("some/one", "test", "v1")]
    with pytest.raises(DataError, match=r"data\.hub=no/one: its split 'train' cannot be loaded: Unknown split"):
        Images(hub="no/one", cache=cache).load()
