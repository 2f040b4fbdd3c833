"""The data cache: created atomically, shared through memory maps, refused when damaged. Data sets without files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.data.dataset import DataError, cache_folder, cached, classes_in_targets
from clients.data.digits import Digits
from clients.data.synthetic import Synthetic


def arrays(n: int = 4) -> dict[str, np.ndarray]:
    x = np.arange(n * 2, dtype=np.float32).reshape(n, 2)
    return {"x_train": x, "y_train": np.arange(n), "x_test": x[:2], "y_test": np.arange(2)}


def load(cache: Path, make: Any = arrays, **key: Any) -> Any:
    return cached("thing", classes_in_targets, key, make, str(cache))


def only(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


def test_what_is_made_comes_back_and_is_made_once(tmp_path):
    data = load(tmp_path)
    assert np.array_equal(data.x_train.numpy(), arrays()["x_train"]) and data.classes == 4
    again = load(tmp_path, make=lambda: pytest.fail("made again"))
    assert again.fingerprint == data.fingerprint and torch.equal(again.y_train, data.y_train)


def test_another_key_is_another_folder(tmp_path):
    load(tmp_path, a=1)
    assert len(load(tmp_path, make=lambda: arrays(7), a=2).x_train) == 7
    assert len(list(tmp_path.iterdir())) == 2


def test_the_fingerprint_is_of_the_contents(tmp_path):
    one, same, other = (load(tmp_path, m, key=n) for n, m in enumerate((arrays, arrays, lambda: arrays(5))))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path):
    load(tmp_path).x_train.add_(100)
    assert np.array_equal(load(tmp_path).x_train.numpy(), arrays()["x_train"])


@pytest.mark.parametrize("part", ["x_train", "y_test"])
def test_a_damaged_cache_is_named_with_what_to_do(tmp_path, part):
    load(tmp_path)
    file = only(tmp_path) / f"{part}.npy"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"is broken .*: delete that folder and run again"):
        load(tmp_path)


def test_a_cache_without_a_file_or_with_files_that_do_not_match_is_refused(tmp_path):
    load(tmp_path)
    np.save(only(tmp_path) / "y_train.npy", np.arange(3))
    with pytest.raises(DataError, match="inputs and targets differ in number"):
        load(tmp_path)
    (only(tmp_path) / "y_train.npy").unlink()
    with pytest.raises(DataError, match=r"y_train\.npy"):
        load(tmp_path)
    (only(tmp_path) / "meta.json").write_text(json.dumps({"classes": 4}))
    with pytest.raises(DataError, match="is broken"):
        load(tmp_path)


def test_a_leftover_without_its_last_file_is_replaced(tmp_path):
    load(tmp_path)
    (only(tmp_path) / "meta.json").unlink()
    assert len(load(tmp_path).x_train) == 4
    assert (only(tmp_path) / "meta.json").is_file()


def test_a_failure_while_decoding_leaves_nothing_behind(tmp_path):
    def broken() -> dict[str, np.ndarray]:
        return {**arrays(), "owner_train": np.array([object()])}  # not to be saved without pickle

    with pytest.raises(ValueError):
        load(tmp_path, broken)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_processes_takes_what_the_quicker_wrote(tmp_path):
    def overtaken() -> dict[str, np.ndarray]:
        load(tmp_path)  # the other process finishes meanwhile
        return arrays()

    assert len(load(tmp_path, overtaken).x_train) == 4
    assert only(tmp_path).is_dir()


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set data\.cache or \$FEDHET_CACHE"):
        load(tmp_path / "file")


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDHET_CACHE", str(tmp_path / "env"))
    assert cache_folder("given") == Path("given") and cache_folder(None) == tmp_path / "env"
    monkeypatch.delenv("FEDHET_CACHE")
    assert cache_folder(None) == Path.home() / ".cache" / "fedhet"


def test_digits_split_is_fixed_and_even_over_classes(tmp_path):
    data = Digits(cache=str(tmp_path)).load()
    assert data.x_train.shape == (1437, 1, 8, 8) and data.x_test.shape == (360, 1, 8, 8)
    assert data.classes == 10 and data.owner_train is None
    assert float(data.x_train.min()) == 0 and float(data.x_train.max()) == 1 and data.x_train.dtype == torch.float32
    train, test = (np.bincount(y.numpy()) for y in (data.y_train, data.y_test))
    assert np.abs(test - (train + test) / 5).max() <= 1

    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    whole = torch.cat([data.x_train, data.x_test]).flatten(1).numpy() * 16
    mine = sorted(map(tuple, np.column_stack([whole, torch.cat([data.y_train, data.y_test])]).astype(int)))
    assert mine == sorted(map(tuple, np.column_stack([images, labels]).astype(int)))


def test_synthetic_classes_are_balanced_and_separable(tmp_path):
    data = Synthetic(samples=500, shape=(3, 4), classes=5, spread=2.0, cache=str(tmp_path)).load()
    assert data.x_train.shape == (500, 3, 4) and len(data.x_test) == 100
    assert np.bincount(data.y_train.numpy()).tolist() == [100] * 5
    x, u = data.x_train.flatten(1), data.x_test.flatten(1)
    centres = torch.stack([x[data.y_train == c].mean(0) for c in range(5)])
    right = (torch.cdist(u, centres).argmin(1) == data.y_test).float().mean()
    assert right > 0.95  # both splits lie around the same centres


def test_synthetic_data_follow_their_seed(tmp_path):
    one, same, other = (
        Synthetic(samples=20, shape=(2,), seed=s, cache=str(tmp_path / str(n))).load() for n, s in enumerate((1, 1, 2))
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("options", "field"), [({"samples": 4}, "samples=4"), ({"classes": 1}, "classes=1"), ({"shape": (0,)}, "shape")]
)
def test_synthetic_values_out_of_range_are_named(options, field):
    with pytest.raises(DataError, match=field):
        Synthetic(**options)
