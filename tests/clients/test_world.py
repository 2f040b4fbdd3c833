"""A simulated world: one data set for all clients, reproducible models, scores counted sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients import world as under_test
from clients.data.dataset import Dataset
from clients.data.dirichlet import Dirichlet
from clients.data.even import Iid
from clients.data.natural import Natural
from clients.models.text import char_transformer
from clients.models.vision import softmax
from clients.world import SimulatedWorld
from fedhet.model.flat_model import Model

CLASSES = 3


@dataclass(frozen=True)
class Given:
    """A loader of what it was given."""

    dataset: Dataset

    def load(self) -> Dataset:
        return self.dataset


def points(train: int = 120, test: int = 47) -> Dataset:
    rng = np.random.default_rng(0)
    y, v = (torch.from_numpy(rng.permutation(np.arange(n) % CLASSES)) for n in (train, test))
    x, u = (torch.from_numpy(rng.standard_normal((n, 4), dtype=np.float32)) for n in (train, test))
    return Dataset("points", CLASSES, x, y, u, v, "print of points")


def characters() -> Dataset:
    rng = np.random.default_rng(0)
    text, unseen = (torch.from_numpy(rng.integers(CLASSES, size=(n, 6))) for n in (12, 10))
    owner = np.arange(12) % 3
    # the third owner has no test sample
    return Dataset("chars", CLASSES, text[:, :-1], text[:, 1:], unseen[:, :-1], unseen[:, 1:], "print of chars",
                   owner, (np.arange(10) % 3 > 0).astype(int))  # fmt: skip


def world(dataset: Dataset | None = None, clients: int = 5, seed: int = 3) -> SimulatedWorld:
    return SimulatedWorld(Given(dataset or points()), Dirichlet(alpha=0.5, min_size=1), softmax, clients, seed)


def reference(model: Model, x: Tensor, y: Tensor) -> tuple[np.ndarray, float]:
    """Per sample the share of its targets predicted right, and the mean loss, one sample at a time in float64."""
    right, loss = [], 0.0
    with torch.no_grad():
        for one, target in zip(x, y, strict=True):
            logits = model.module(one[None])[0].double().reshape(-1, CLASSES).numpy()
            targets = np.atleast_1d(target.numpy())
            right.append(float(np.mean(logits.argmax(-1) == targets)))
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            loss -= float(np.mean(logs[np.arange(len(targets)), targets]))
    return np.asarray(right), loss / len(y)


def test_initial_parameters_follow_the_seed_and_nothing_else() -> None:
    first, again = world().model().flat, world(clients=2).model().flat
    assert torch.equal(first, again)
    assert not torch.equal(first, world(seed=4).model().flat)


def test_a_world_draws_nothing_from_the_global_streams() -> None:
    torch.manual_seed(11)
    np.random.seed(11)
    bits, numbers = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]
    here = world()
    here.evaluate(here.model())
    next(iter(here.shard(0, 0).batches(4)))
    assert torch.equal(torch.get_rng_state(), bits)
    after = np.random.get_state(legacy=False)["state"]
    assert after["pos"] == numbers["pos"] and np.array_equal(after["key"], numbers["key"])


def test_shards_hold_every_sample_once_and_as_many_as_clients_declare() -> None:
    here = world()
    shards = [here.shard(c, 0).all_samples() for c in range(5)]
    assert [len(y) for _, y in shards] == here.examples().tolist()
    held = torch.cat([x for x, _ in shards])
    assert sorted(map(tuple, held.tolist())) == sorted(map(tuple, here.dataset.x_train.tolist()))


def test_inputs_and_labels_of_a_shard_belong_together() -> None:
    here = world()
    label = {tuple(x): y for x, y in zip(here.dataset.x_train.tolist(), here.dataset.y_train.tolist(), strict=True)}
    for client in range(5):
        x, y = here.shard(client, 0).all_samples()
        assert [label[tuple(row)] for row in x.tolist()] == y.tolist()


def test_scores_of_images_are_those_counted_sample_by_sample() -> None:
    here = world()
    model = here.model()
    right, loss = reference(model, here.dataset.x_test, here.dataset.y_test)
    scores = here.evaluate(model)
    assert scores.accuracy == right.mean()
    assert scores.loss == pytest.approx(loss, rel=1e-6)
    by_class = np.array([right[here.dataset.y_test.numpy() == c].mean() for c in range(CLASSES)])
    for client, seen in enumerate(scores.clients):
        mix = np.bincount(here.shard(client, 0).all_samples()[1], minlength=CLASSES) / here.examples()[client]
        assert seen == pytest.approx(float(mix @ by_class), rel=1e-12)


def test_scores_of_sequences_count_positions_and_keep_each_owners_test_set() -> None:
    dataset = characters()
    here = SimulatedWorld(Given(dataset), Natural(), char_transformer, 3, 0)
    model = here.model()
    right, loss = reference(model, dataset.x_test, dataset.y_test)
    scores = here.evaluate(model)
    assert scores.accuracy == pytest.approx(right.mean(), rel=1e-12)
    assert scores.loss == pytest.approx(loss, rel=1e-5)
    # which client is which owner is the partition's choice: known by its first training sample
    assert dataset.owner_train is not None and dataset.owner_test is not None
    for client in range(3):
        owner = dataset.owner_train[here.partition.indices(client)[0]]
        own = right[dataset.owner_test == owner]
        expected = own.mean() if len(own) else np.nan
        assert scores.clients[client] == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert np.isnan(scores.clients).sum() == 1
    assert len(np.unique(scores.clients[np.isfinite(scores.clients)])) == 2  # or a mix-up would go unnoticed


def test_scores_do_not_depend_on_how_many_samples_are_evaluated_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world()
    model = here.model()
    at_once = here.evaluate(model)
    monkeypatch.setattr(under_test, "BATCH", 10)  # 47 samples: the last part is not full
    in_parts = here.evaluate(model)
    assert in_parts.accuracy == at_once.accuracy
    assert np.array_equal(in_parts.clients, at_once.clients)
    assert in_parts.loss == pytest.approx(at_once.loss, rel=1e-6)


def test_evaluation_changes_neither_the_model_nor_its_mode() -> None:
    here = world()
    model = here.model()
    model.module.train()
    before = model.flat.clone()
    here.evaluate(model)
    assert torch.equal(model.flat, before) and model.module.training


def test_iid_clients_all_expect_the_total_accuracy() -> None:
    here = SimulatedWorld(Given(points()), Iid(), softmax, 4, 0)
    model = here.model()
    with torch.no_grad():
        model.flat.zero_()
    scores = here.evaluate(model)  # class 0 everywhere: a client's accuracy is its share of class 0
    share = [float((here.shard(c, 0).all_samples()[1] == 0).double().mean()) for c in range(4)]
    assert scores.clients == pytest.approx(share, rel=1e-12)
    assert scores.loss == pytest.approx(np.log(CLASSES), rel=1e-6)


def test_operations_and_description_are_those_of_model_and_data() -> None:
    here = world()
    assert here.flops() == 2 * 4 * CLASSES
    assert here.describe() == {"data": "points", "fingerprint": "print of points"}


def test_a_factory_that_makes_no_module_is_named() -> None:
    def nothing(*, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return None  # type: ignore[return-value]

    here = SimulatedWorld(Given(replace(points(), name="other")), Iid(), nothing, 2, 0)
    with pytest.raises(ValueError, match="returned NoneType, not an nn"):
        here.model()
