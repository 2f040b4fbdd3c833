"""The simulated world: one data set partitioned among clients, and models for it.

It is built once per process and shared by all of its clients; a client's data are an index into the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clients.data.dataset import Dataset
from clients.data.partition import Partition
from clients.data.shard import ClientShard
from clients.models.build import build
from clients.models.flops import forward_flops
from fedhet.model.flat_model import Model
from fedhet.numerics.tree import accumulator
from fedhet.protocols import Shard
from fedhet.types import ClientId
from fedhet.world import Scores

BATCH = 2048
"""Test samples evaluated at a time."""


class Loader(Protocol):
    def load(self) -> Dataset: ...


class Splitter(Protocol):
    def split(self, dataset: Dataset, clients: int, seed: int) -> Partition: ...


class SimulatedWorld:
    """`data` loads, `partition` divides among `clients`, `model(input_shape=..., classes=...)` makes a module."""

    def __init__(
        self, data: Loader, partition: Splitter, model: Callable[..., nn.Module], clients: int, seed: int
    ) -> None:
        self.clients, self._seed, self._factory = clients, seed, model
        self._dtype: torch.dtype | None = None  # known once a model was built
        self.dataset = data.load()
        self.partition = partition.split(self.dataset, clients, seed)

    def examples(self) -> np.ndarray:
        return self.partition.counts

    def model(self) -> Model:
        """A fresh model; the same initial bits for the same seed."""
        data = self.dataset
        model = build(self._factory, data.input_shape, data.classes, self._seed, data.x_train[:1])
        self._dtype = model.flat.dtype
        return model

    def shard(self, client: ClientId, turn: int) -> Shard:
        data = self.dataset
        return ClientShard(data.x_train, data.y_train, self.partition.indices(client), self._seed, client, turn)

    def evaluate(self, model: Model) -> Scores:
        """Accuracy and loss on the full test set, and each client's expected accuracy on data like its own."""
        data, correct, loss = self.dataset, [], 0.0
        for at in range(0, len(data.x_test), BATCH):
            x, y = data.x_test[at : at + BATCH], data.y_test[at : at + BATCH]
            output = model.predict(x)
            loss += float(model.loss_of(output, y)) * len(y)
            correct.append(_share_right(output, y))
        right = torch.cat(correct).numpy()
        return Scores(float(right.mean()), loss / len(right), self.partition.client_accuracy(right))

    def check(self, model: Model) -> None:
        """Raises ValueError for a model whose outputs do not fit the labels, and for labels that are no classes."""
        data = self.dataset
        for split, labels in (("train", data.y_train), ("test", data.y_test)):
            if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < data.classes):
                raise ValueError(
                    f"{data.name}: the {split} labels go from {int(labels.min())} to {int(labels.max())}, but there "
                    f"are {data.classes} classes, from 0 to {data.classes - 1}"
                )
        x, y = data.x_test[:2], data.y_test[:2]
        output = model.predict(x)
        wanted = (*y.shape, data.classes)
        if tuple(output.shape[:-1]) != tuple(y.shape) or output.shape[-1] < data.classes:
            why = "one logit a sample cannot be trained, as the loss is cross-entropy: give a number for every class"
            raise ValueError(
                f"for inputs of shape {tuple(x.shape)} the outputs have shape {tuple(output.shape)}, and {wanted} is "
                f"needed, (samples, classes) or (samples, positions, classes)"
                + (f"; {why}" if output.dim() == 1 or output.shape[-1] == 1 else "")
            )
        if not output.is_floating_point():
            raise ValueError(f"the outputs are {str(output.dtype).removeprefix('torch.')}, not floating-point logits")

    def flops(self) -> float:
        return float(forward_flops(self.model().module, self.dataset.input_shape))

    def describe(self) -> Mapping[str, Any]:
        notices = [self.partition.notice] if self.partition.notice else []
        if self._dtype is not None and accumulator(self._dtype) != self._dtype:
            kind = str(self._dtype).removeprefix("torch.")
            notices.append(
                f"the model is in {kind}: sums over clients are formed in float32, but the model itself takes up no "
                f"step smaller than about {torch.finfo(self._dtype).eps / 2:.0e} of a weight"
            )
        told = {"notices": notices} if notices else {}
        return {"data": self.dataset.name, "fingerprint": self.dataset.fingerprint, **told}


def _share_right(output: Tensor, target: Tensor) -> Tensor:
    """Per sample, the share of correct predictions: 0 or 1 for images, a mean over positions for sequences."""
    right = (output.argmax(-1) == target).to(torch.float64)
    return right if right.dim() == 1 else right.flatten(1).mean(1)
