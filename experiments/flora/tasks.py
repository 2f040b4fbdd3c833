"""The clients of the study: shifted digits, ciphered Shakespeare, and the ranks that clients declare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from clients.data.dataset import Dataset
from clients.data.digits import Digits
from clients.data.parquet import Characters
from clients.data.source import source
from fedhet.numerics.rng import stream
from fedhet.population.roster import Clients

LETTERS = "etaoinshr"
"""Frequent letters, which a cipher exchanges among one another."""


@dataclass(frozen=True)
class ShiftedDigits:
    """The digits; with `shift` turned by a quarter and inverted. A fifth of the training images is held back: with
    `validation` it is the test set, otherwise nobody sees it."""

    shift: bool = True
    validation: bool = False

    def load(self) -> Dataset:
        whole = Digits().load()
        order = torch.from_numpy(stream(0, "held back").permutation(len(whole.x_train)))
        cut = len(order) // 5
        x, y = whole.x_train[order[cut:]], whole.y_train[order[cut:]]
        u, v = (whole.x_test, whole.y_test)
        if self.validation:
            u, v = whole.x_train[order[:cut]], whole.y_train[order[:cut]]
        if self.shift:
            x, u = (1.0 - torch.rot90(part, 1, (2, 3)).contiguous() for part in (x, u))
        name = f"{'shifted' if self.shift else 'upright'} digits"
        return replace(whole, name=name, x_train=x, y_train=y, x_test=u, y_test=v)


@dataclass(frozen=True)
class Ciphered:
    """Shakespeare's roles in two halves by turns. `base` gives the one half as it is, to train a model at one place.
    Otherwise the largest `roles` of the other half become `clients` owners of equal size, and each pair of owners has a
    substitution of its own among nine frequent letters, in training and test text alike."""

    path: str
    base: bool = False
    clients: int = 10
    roles: int = 60
    length: int = 32
    train: int = 240
    test: int = 40

    def load(self) -> Dataset:
        return _ciphered(self)

    def make(self) -> Dataset:
        """Read and cipher; `load` does so once a process."""
        whole = Characters(path=self.path, text="text", owner="character_id", length=self.length).load()
        assert whole.owner_train is not None and whole.owner_test is not None
        names, counts = np.unique(whole.owner_train, return_counts=True)
        order = names[np.lexsort((names, -counts))]
        if self.base:
            kept = order[1::2]
            return _only(whole, np.isin(whole.owner_train, kept), np.isin(whole.owner_test, kept))
        client = {name: number % self.clients for number, name in enumerate(order[0::2][: self.roles])}
        parts = [self._part(whole, client, split) for split in ("train", "test")]
        (x, y, owner), (u, v, other) = parts
        return replace(
            whole, name="ciphered Shakespeare", x_train=x, y_train=y, owner_train=owner, x_test=u, y_test=v,
            owner_test=other,
        )  # fmt: skip

    def _part(self, whole: Dataset, client: dict[str, int], split: str) -> tuple[Tensor, Tensor, np.ndarray]:
        owners = getattr(whole, f"owner_{split}")
        number = np.array([client.get(name, -1) for name in owners])
        most, xs, ys = getattr(self, split), [], []
        for one in range(self.clients):
            at = np.flatnonzero(number == one)
            at = np.sort(stream(0, "windows", one).permutation(at)[:most])
            table = self._cipher(one // 2, whole.classes)
            xs.append(table[getattr(whole, f"x_{split}")[at]])
            ys.append(table[getattr(whole, f"y_{split}")[at]])
        return torch.cat(xs), torch.cat(ys), np.repeat([f"client {n}" for n in range(self.clients)], list(map(len, xs)))

    def _cipher(self, group: int, classes: int) -> Tensor:
        """Where each character goes."""
        code = {letter: 1 + _vocabulary(self.path).index(letter) for letter in LETTERS}
        table = torch.arange(classes)
        moved = stream(1, "cipher", group).permutation(len(LETTERS))
        for letter, to in zip(LETTERS, moved, strict=True):
            table[code[letter]] = code[LETTERS[to]]
        return table


@lru_cache(maxsize=2)
def _ciphered(given: Ciphered) -> Dataset:
    return given.make()


@lru_cache(maxsize=1)
def _vocabulary(path: str) -> list[str]:
    return sorted(set().union(*source(path, None, None).table("train")["text"]))


def _only(whole: Dataset, train: np.ndarray, test: np.ndarray) -> Dataset:
    at, of = torch.from_numpy(np.flatnonzero(train)), torch.from_numpy(np.flatnonzero(test))
    return replace(
        whole, name="half of Shakespeare", x_train=whole.x_train[at], y_train=whole.y_train[at],
        x_test=whole.x_test[of], y_test=whole.y_test[of], owner_train=None, owner_test=None,
    )  # fmt: skip


@dataclass(frozen=True)
class Ranked:
    """Equally fast clients, one for each rank."""

    ranks: Sequence[int] = (4,)

    @property
    def clients(self) -> int:
        return len(self.ranks)

    def build(self, seed: int) -> Clients:
        return Clients.from_columns(len(self.ranks), {"sec_per_step": 0.1, "max_rank": np.array(self.ranks)})
