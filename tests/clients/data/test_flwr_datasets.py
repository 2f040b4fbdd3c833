"""Flower Datasets' own partitioners on fedhet's data, where the package is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from clients.data.dataset import DataError
from clients.data.digits import Digits
from clients.data.flwr_datasets import FlwrDatasets

HERE = importlib.util.find_spec("flwr_datasets") is not None
needs_package = pytest.mark.skipif(not HERE, reason="flwr-datasets is not installed (extra flwr-datasets)")


@pytest.mark.skipif(HERE, reason="flwr-datasets is installed")
def test_without_the_package_the_error_says_how_to_get_it() -> None:
    with pytest.raises(DataError, match=r"pip install 'fedhet\[flwr-datasets\]'"):
        FlwrDatasets().split(Digits().load(), 5, 0)


@needs_package
@pytest.mark.parametrize(
    ("partitioner", "options"),
    [
        ("IidPartitioner", {}),
        ("DirichletPartitioner", {"alpha": 0.3}),
        ("PathologicalPartitioner", {"num_classes_per_partition": 2, "class_assignment_mode": "first-deterministic"}),
        ("ShardPartitioner", {"num_shards_per_partition": 2}),
        ("LinearPartitioner", {}),
    ],
)
def test_samples_are_divided_without_overlap_and_the_same_way_again(partitioner: str, options: dict[str, Any]) -> None:
    dataset = Digits().load()
    one, two = (FlwrDatasets(partitioner, options).split(dataset, 6, 3) for _ in range(2))
    held = [one.indices(c) for c in range(6)]
    assert len(np.unique(np.concatenate(held))) == sum(map(len, held)) <= len(dataset.x_train)
    assert all(np.array_equal(a, two.indices(c)) for c, a in enumerate(held))
    if "Pathological" in partitioner:
        assert ((one.histogram > 0).sum(1) == 2).all()
    if partitioner == "LinearPartitioner":
        assert (np.diff(one.counts) > 0).all()


@needs_package
def test_another_seed_divides_differently_and_even_an_unshuffled_cut_mixes_labels() -> None:
    dataset = Digits().load()
    one, two = (FlwrDatasets().split(dataset, 6, seed) for seed in (0, 1))
    assert any(not np.array_equal(one.indices(c), two.indices(c)) for c in range(6))
    assert (one.histogram > 0).all()


@needs_package
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (FlwrDatasets("DirichletPartitoner"), "did you mean 'DirichletPartitioner'"),
        (FlwrDatasets("IidPartitioner", {"num_partition": 3}), "did you mean 'num_partitions'"),
        (FlwrDatasets("SizePartitioner", {"partition_sizes": [10, 20]}), "fleet.clients=2"),
    ],
)
def test_bad_input_says_what_would_be_right(made: FlwrDatasets, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made.split(Digits().load(), 6, 0)
