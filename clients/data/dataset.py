"""A data set: four tensors over memory-mapped files that are decoded once and shared by all processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PARTS = ("x_train", "y_train", "x_test", "y_test")
OWNERS = ("owner_train", "owner_test")


class DataError(ValueError):
    """Missing or malformed data; the message names the file or column."""


@dataclass(frozen=True)
class Dataset:
    """Inputs (n, *input_shape) and integer targets (n,) or (n, length); `owner_*` are natural client ids (n,) or None.

    `fingerprint` is a SHA-256 over the contents.
    """

    name: str
    classes: int
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    fingerprint: str
    owner_train: np.ndarray | None = None
    owner_test: np.ndarray | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x_train.shape[1:])

    @property
    def labelled(self) -> bool:
        """Whether a sample has one label; a sequence has one per position."""
        return self.y_train.dim() == 1

    @property
    def labels(self) -> np.ndarray:
        """One label per training sample, int64 (n,), for label-skewed partitions."""
        if not self.labelled:
            raise DataError(f"{self.name} has no single label per sample: use partition=natural, iid or quantity")
        return self.y_train.numpy()


def cache_folder(given: str | None) -> Path:
    """The folder of decoded data: `given`, else $FEDHET_CACHE, else ~/.cache/fedhet.

    A user without a home folder, as in some containers, gets a private folder among the temporary files. Raises
    DataError if that folder belongs to another user.
    """
    chosen = given or os.environ.get("FEDHET_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "fedhet"
    except RuntimeError:  # neither HOME nor an entry for this user
        private = Path(tempfile.gettempdir()) / f"fedhet-{os.getuid()}"
        private.mkdir(mode=0o700, exist_ok=True)
        about = private.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise DataError(f"{private} is not this user's own folder: set FEDHET_CACHE or HOME") from None
        return private


def cached(
    name: str, classes_of: Callable[[Mapping[str, np.ndarray]], int], key: Mapping[str, Any],
    make: Callable[[], Mapping[str, np.ndarray]], cache: str | None,
) -> Dataset:  # fmt: skip
    """The data set under `key`, decoded by `make` if it is not in the cache yet.

    A folder is created atomically, so several processes can decode at the same time.
    """
    text = json.dumps({"format": 1, "name": name, **key}, sort_keys=True)
    folder = cache_folder(cache) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not (folder / "meta.json").is_file():
        arrays = make()
        try:
            _write(folder, arrays, classes_of)
        except OSError as error:
            raise DataError(
                f"the cache {folder} cannot be written ({error}): set data.cache or $FEDHET_CACHE"
            ) from None
    try:
        return _open(name, folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the cache {folder} is broken ({error}): delete that folder and run again") from None


def _write(
    folder: Path, arrays: Mapping[str, np.ndarray], classes_of: Callable[[Mapping[str, np.ndarray]], int]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    try:
        total = hashlib.sha256()
        for part, array in sorted(arrays.items()):
            array = np.ascontiguousarray(array)
            np.save(beside / f"{part}.npy", array, allow_pickle=False)
            total.update(f"{part}{array.dtype}{array.shape}".encode())
            total.update(array.data)
        meta = {"classes": classes_of(arrays), "fingerprint": total.hexdigest()}
        (beside / "meta.json").write_text(json.dumps(meta))
        try:
            beside.replace(folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # not another process that was quicker: a leftover
                shutil.rmtree(folder)
                beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _open(name: str, folder: Path) -> Dataset:
    meta = json.loads((folder / "meta.json").read_text())
    # copy-on-write maps: pages are shared by all processes, and torch gets the writable memory it insists on
    x, y, u, v = (torch.from_numpy(np.load(folder / f"{p}.npy", mmap_mode="c", allow_pickle=False)) for p in PARTS)
    if len(x) != len(y) or len(u) != len(v):
        raise ValueError("inputs and targets differ in number")
    dataset = Dataset(name, int(meta["classes"]), x, y, u, v, str(meta["fingerprint"]))
    owners = {p: np.load(folder / f"{p}.npy", allow_pickle=False) for p in OWNERS if (folder / f"{p}.npy").is_file()}
    return replace(dataset, **owners)


def classes_in_targets(arrays: Mapping[str, np.ndarray]) -> int:
    """Number of classes: the largest target of either split, plus one."""
    return int(max(arrays["y_train"].max(), arrays["y_test"].max())) + 1
