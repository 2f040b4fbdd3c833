"""Every partition: no sample has two owners, all are used, the same seed gives the same result, labels are skewed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.data.classes import OWNED, ClassPartition, LabelQuantity, Pathological, Shards
from clients.data.dataset import DataError
from clients.data.dirichlet import Dirichlet, DirichletClient, DualDirichlet
from clients.data.even import Iid, PerClient, Quantity
from clients.data.natural import Natural
from clients.data.partition import Partition

COMPLETE = [
    Iid(), Quantity(), Quantity(law="lognormal"), Shards(), Pathological(), ClassPartition(), Dirichlet(0.1),
    Dirichlet(0.1, balance=True), Dirichlet(0.05, min_size=5, top_up=True), DirichletClient(0.1), DualDirichlet(),
    DualDirichlet(alpha1=8.0, min_size=3, top_up=True),
]  # fmt: skip
LABELLED = [*COMPLETE, LabelQuantity()]


def name(method: Any) -> str:
    return repr(method)


def used(partition: Partition) -> np.ndarray:
    return np.concatenate([partition.indices(c) for c in range(partition.clients)])


@pytest.fixture(scope="module")
def dataset(make_dataset):
    """1,000 samples of ten classes of unequal size, sorted by label: nobody may rely on the order in the file."""
    sizes = [40, 60, 80, 90, 100, 100, 110, 120, 140, 160]
    return make_dataset(np.repeat(np.arange(10), sizes))


@pytest.mark.parametrize("method", COMPLETE, ids=name)
@settings(max_examples=settings.default.max_examples // 5)
@given(seed=st.integers(0, 10**6), clients=st.integers(5, 12))
def test_every_sample_has_exactly_one_owner(method, dataset, seed, clients):
    partition = method.split(dataset, clients, seed)
    assert partition.clients == clients
    assert np.array_equal(np.sort(used(partition)), np.arange(1000))
    assert partition.counts.sum() == 1000 and partition.counts.min() >= 1
    assert np.array_equal(partition.histogram.sum(0), np.bincount(dataset.labels))
    assert np.array_equal(partition.histogram.sum(1), partition.counts)


@pytest.mark.parametrize("method", LABELLED, ids=name)
def test_the_seed_decides_everything(method, dataset):
    once, again, other = (method.split(dataset, 10, seed) for seed in (3, 3, 4))
    assert np.array_equal(used(once), used(again)) and np.array_equal(once.counts, again.counts)
    assert not np.array_equal(used(once), used(other))


@pytest.mark.parametrize("method", LABELLED, ids=name)
def test_clients_ascend_and_their_numbers_cost_four_bytes(method, dataset):
    partition = method.split(dataset, 10, 0)
    assert all((np.diff(partition.indices(c)) > 0).all() for c in range(10))
    assert partition.indices(0).dtype == np.int32


@pytest.mark.parametrize("method", [*LABELLED, PerClient(3)], ids=name)
def test_the_histogram_counts_the_labels_of_the_indices(method, dataset):
    partition = method.split(dataset, 10, 0)
    for client in range(10):
        own = np.bincount(dataset.labels[partition.indices(client)], minlength=10)
        assert np.array_equal(partition.histogram[client], own)
    assert np.array_equal(partition.labels([7, 2]), partition.histogram[[7, 2]])


@pytest.mark.parametrize("method", LABELLED, ids=name)
def test_more_clients_than_samples_are_refused_with_the_number_that_fits(method, make_dataset):
    with pytest.raises(DataError, match=r"set fleet\.clients to 1 to 10"):
        method.split(make_dataset(np.arange(10)), 11, 0)


def test_even_sizes_and_classes_in_sorted_data(dataset):
    partition = Iid().split(dataset, 7, 0)
    assert np.ptp(partition.counts) <= 1
    assert (partition.histogram > 0).all()


@settings(max_examples=settings.default.max_examples // 3)
@given(seed=st.integers(0, 1000), beta=st.floats(0.01, 10))
def test_uneven_sizes_leave_no_client_empty_and_labels_iid(dataset, seed, beta):
    partition = Quantity(beta=beta).split(dataset, 50, seed)
    assert partition.counts.min() >= 1
    largest = int(partition.counts.argmax())
    if partition.counts[largest] > 200:
        assert (partition.histogram[largest] > 0).all()


def test_small_beta_is_less_even(dataset):
    spread = [np.std(Quantity(beta=b).split(dataset, 20, 0).counts) for b in (0.1, 1.0, 100.0)]
    assert spread[0] > spread[1] > spread[2]


def test_dirichlet_limits(dataset):
    """alpha to infinity is an even division of each class; alpha to 0 gives each class to one client."""
    even = Dirichlet(1e9).split(dataset, 10, 0).histogram
    assert np.abs(even - np.bincount(dataset.labels) / 10).max() <= 1
    lonely = Dirichlet(1e-3, min_size=1, top_up=True).split(dataset, 3, 0).histogram
    assert (lonely.max(0) >= 0.95 * lonely.sum(0)).all()


def test_balance_keeps_dirichlet_sizes_below_an_even_share_plus_one_class(dataset):
    for seed in range(20):
        partition = Dirichlet(0.1, balance=True).split(dataset, 8, seed)
        assert partition.counts.max() < 1000 / 8 + 160


def test_a_draw_with_too_few_samples_for_a_client_is_repeated_or_topped_up(dataset):
    with pytest.raises(DataError, match=r"partition\.top_up=true"):
        Dirichlet(0.01, min_size=15, top_up=False).split(dataset, 50, 0)
    topped = Dirichlet(0.01, min_size=15).split(dataset, 50, 0)
    assert topped.counts.min() == 15 and topped.counts.sum() == 1000
    assert re.search(r"no draw gave all 50 clients min_size=15 samples; \d+ of them", topped.notice)
    assert DualDirichlet(min_size=20).split(dataset, 50, 0).counts.tolist() == [20] * 50
    with pytest.raises(DataError, match=r"min_size=21 for 50 clients needs 1050 samples.*at most 20"):
        Dirichlet(min_size=21).split(dataset, 50, 0)


def test_top_up_changes_nothing_if_all_clients_have_enough(dataset):
    plain, topped = (Dirichlet(0.5, min_size=1, top_up=t).split(dataset, 5, 0) for t in (False, True))
    assert np.array_equal(used(plain), used(topped)) and not topped.notice


def test_client_mixes_fill_even_sizes_with_few_classes(dataset):
    partition = DirichletClient(0.1).split(dataset, 10, 0)
    assert partition.counts.tolist() == [100] * 10
    assert np.median((partition.histogram >= 10).sum(1)) <= 3
    even = DirichletClient(1e9).split(dataset, 10, 0).histogram
    assert np.abs(even - np.bincount(dataset.labels) / 10).max() < 15


def test_dual_dirichlet_shares_are_the_equation_rounded_down(dataset):
    """W_i I_ij / sum_k W_k I_kj, from the same stream written out; the last client takes the rest."""
    from fedhet.numerics.rng import stream

    partition = DualDirichlet(alpha1=8.0, alpha2=5.0).split(dataset, 6, 11)
    rng = stream(11, "dual_dirichlet", 0)
    sizes = np.bincount(dataset.labels)
    for count in sizes:
        rng.permutation(count)
    w = rng.dirichlet(np.full(6, 8.0 / 6))
    mixes = rng.dirichlet(5.0 * sizes / 1000, 6)
    for j, size in enumerate(sizes):
        share = [float(w[i] * mixes[i, j] / sum(w[k] * mixes[k, j] for k in range(6))) for i in range(6)]
        counts = [int(s * size) for s in share[:-1]]
        assert partition.histogram[:, j].tolist() == [*counts, size - sum(counts)]


def test_dual_dirichlet_by_default_leaves_clients_nearly_one_class(dataset):
    partition = DualDirichlet().split(dataset, 5, 0)
    assert np.median(partition.histogram.max(1) / partition.counts) > 0.5


@settings(max_examples=settings.default.max_examples // 3)
@given(seed=st.integers(0, 1000), clients=st.integers(1, 25), per_client=st.integers(1, 4))
def test_shards_lose_no_remainder_and_hold_few_classes(make_dataset, seed, clients, per_client):
    """1,003 samples: sizes that divide by nothing."""
    data = make_dataset(np.random.default_rng(0).permutation(np.arange(1003) % 10))
    partition = Shards(per_client).split(data, clients, seed)
    assert partition.counts.sum() == 1003 and np.ptp(partition.counts) <= per_client
    # a shard shorter than a class touches at most two
    if clients * per_client >= 11:
        assert ((partition.histogram > 0).sum(1) <= 2 * per_client).all()


@settings(max_examples=settings.default.max_examples // 3)
@given(seed=st.integers(0, 1000), k=st.integers(1, 10), clients=st.integers(10, 30))
def test_pathological_uses_every_class_equally_often(dataset, seed, k, clients):
    histogram = Pathological(k).split(dataset, clients, seed).histogram
    assert ((histogram > 0).sum(1) == k).all()
    owners = (histogram > 0).sum(0)
    assert np.ptp(owners) <= 1 and owners.sum() == k * clients
    for label in range(10):  # evenly, but for rounding
        own = histogram[:, label][histogram[:, label] > 0]
        assert np.ptp(own) <= 1


def test_pathological_pairs_differ_between_clients(dataset):
    owned = Pathological(2).split(dataset, 20, 0).histogram > 0
    assert len({tuple(np.flatnonzero(row)) for row in owned}) > 8


def test_label_quantity_gives_client_i_the_class_i_mod_c(dataset):
    histogram = LabelQuantity(3).split(dataset, 14, 5).histogram
    assert all(histogram[i, i % 10] > 0 for i in range(14))
    assert ((histogram > 0).sum(1) == 3).all()


def test_label_quantity_of_few_clients_leaves_classes_out_and_uses_the_others_fully(dataset):
    histogram = LabelQuantity(2).split(dataset, 3, 0).histogram
    totals = histogram.sum(0)
    assert (totals == 0).any()
    assert all(t in (0, s) for t, s in zip(totals, np.bincount(dataset.labels), strict=True))


@pytest.mark.parametrize("clients", range(1, 13))
def test_class_partition_owns_all_classes_within_its_bounds(dataset, clients):
    histogram = ClassPartition().split(dataset, clients, 0).histogram
    least, most = OWNED.get(clients, (3, 5))
    owned = (histogram > 0).sum(1)
    assert owned.min() >= least and owned.max() <= most
    assert (histogram.sum(0) == np.bincount(dataset.labels)).all()


def test_class_partition_without_spread_divides_evenly(dataset):
    histogram = ClassPartition(std=0.0).split(dataset, 8, 0).histogram
    for column in histogram.T:
        assert np.ptp(column[column > 0]) <= 1


def test_class_partition_gives_up_where_luck_cannot_help(make_dataset):
    data = make_dataset(np.arange(400) % 100)
    with pytest.raises(DataError, match=r"partition\.most"):
        ClassPartition().split(data, 20, 0)
    with pytest.raises(DataError, match=r"partition\.most"):
        ClassPartition(least=1, most=2).split(data, 10, 0)


def test_natural_clients_are_owners_largest_first_with_their_own_test_data(make_dataset):
    train = np.array(["b"] * 3 + ["a"] * 5 + ["c"] * 3 + ["d"])
    data = make_dataset(np.zeros(12), [0, 0, 0, 0], owner_train=train, owner_test=np.array(["c", "x", "a", "c"]))
    partition = Natural(min_size=2).split(data, 3, 0)
    assert [p.tolist() for p in (partition.indices(c) for c in range(3))] == [[3, 4, 5, 6, 7], [0, 1, 2], [8, 9, 10]]
    assert partition.test is not None
    assert [partition.test[c].tolist() for c in range(3)] == [[2], [], [0, 3]]
    assert partition.client_accuracy(np.array([1.0, 1.0, 0.25, 0.0]))[[0, 2]].tolist() == [0.25, 0.5]
    assert np.isnan(partition.client_accuracy(np.ones(4))[1])


def test_unknown_owners_in_the_test_set_are_left_out_and_a_client_may_have_none(make_dataset):
    train, test = np.array(["a", "a", "a", "c", "c", "e"]), np.array(["bb", "a", "z", "A", "c"])
    data = make_dataset(np.zeros(6), np.zeros(5), owner_train=train, owner_test=test)
    partition = Natural().split(data, 3, 0)
    assert [partition.test[c].tolist() for c in range(3)] == [[1], [4], []]
    accuracy = partition.client_accuracy(np.array([0.0, 0.5, 0.0, 0.0, 1.0]))
    assert accuracy[:2].tolist() == [0.5, 1.0] and np.isnan(accuracy[2])


def test_natural_owners_can_be_grouped(make_dataset):
    train = np.repeat(["p", "q", "r", "s", "t"], [5, 4, 3, 2, 1])
    data = make_dataset(np.zeros(15), owner_train=train)
    partition = Natural(group=True).split(data, 2, 0)
    assert partition.test is None and partition.counts.tolist() == [5 + 3 + 1, 4 + 2]
    assert Natural(group=True, min_size=2).split(data, 2, 0).counts.tolist() == [8, 6]


def test_natural_says_how_many_owners_there_are(make_dataset):
    data = make_dataset(np.zeros(6), owner_train=np.array([1, 1, 2, 2, 3, 4]))
    with pytest.raises(DataError, match=r"2 of 4 owners have min_size=2 samples: set fleet\.clients to at most 2"):
        Natural(min_size=2).split(data, 3, 0)
    with pytest.raises(DataError, match="names no owners"):
        Natural().split(make_dataset(np.zeros(3)), 1, 0)


def test_samples_drawn_on_demand_cost_nothing_for_a_million_clients(dataset):
    partition = PerClient(7).split(dataset, 1_000_000, 0)
    assert partition.clients == 1_000_000 and partition.counts[999_999] == 7
    assert partition.counts.strides == (0,) and partition.client_accuracy(np.ones(1000)).strides == (0,)
    last = partition.indices(999_999)
    assert np.array_equal(last, partition.indices(999_999)) and not np.array_equal(last, partition.indices(5))
    assert last.min() >= 0 and last.max() < 1000 and len(last) == 7


def test_expected_accuracy_is_that_of_the_classes_weighted_by_a_clients_mix(make_dataset):
    data = make_dataset([0, 0, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1])  # the test set has no class 2
    partition = Partition.of(data, np.array([0, 1, 0, 0, 2, 2]), 3)
    right = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    accuracy = partition.client_accuracy(right)
    assert accuracy[:2].tolist() == [0.5 * 0.5 + 0.5 * 0.75, 0.5]
    assert np.isnan(accuracy[2])  # nothing is known about class 2


@settings(max_examples=settings.default.max_examples // 3)
@given(st.lists(st.booleans(), min_size=1000, max_size=1000), st.integers(0, 100))
def test_client_accuracies_average_to_the_total_when_train_and_test_labels_agree(dataset, right, seed):
    partition = Dirichlet(0.3).split(dataset, 9, seed)
    mean = np.average(partition.client_accuracy(np.array(right, float)), weights=partition.counts)
    assert mean == pytest.approx(np.mean(right), abs=1e-12)


def test_an_owner_with_nothing_is_an_error(make_dataset):
    with pytest.raises(DataError, match=r"1 of 3 clients have no sample \(the first is 1\)"):
        Partition.of(make_dataset([0, 1, 0]), np.array([0, 2, 2]), 3)


def test_sequences_have_no_label_to_go_by(make_dataset):
    from dataclasses import replace

    data = make_dataset(np.zeros(20))
    data = replace(data, y_train=data.y_train[:, None].repeat(1, 4), y_test=data.y_test[:, None].repeat(1, 4))
    with pytest.raises(DataError, match="partition=natural, iid or quantity"):
        Dirichlet().split(data, 2, 0)
    assert Iid().split(data, 2, 0).client_accuracy(np.linspace(0, 1, 20)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Dirichlet(alpha=0.0), "alpha=0.0"), (lambda: Dirichlet(min_size=0), "min_size=0"),
        (lambda: DirichletClient(alpha=-1.0), "alpha=-1.0"), (lambda: DualDirichlet(alpha2=float("nan")), "alpha2=nan"),
        (lambda: DualDirichlet(alpha1=float("inf")), "alpha1=inf"), (lambda: Quantity(law="zipf"), "law='zipf'"),
        (lambda: Quantity(beta=0.0), "beta=0.0"), (lambda: Shards(0), "per_client=0"),
        (lambda: PerClient(0), "per_client=0"),
        (lambda: Pathological(0), "classes_per_client=0"), (lambda: LabelQuantity(-1), "classes_per_client=-1"),
        (lambda: ClassPartition(least=0), "least=0"), (lambda: ClassPartition(std=-1.0), "std=-1.0"),
        (lambda: Natural(min_size=0), "min_size=0"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(build, field):
    with pytest.raises(DataError, match=field.replace(".", r"\.")):
        build()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Pathological(11), "classes_per_client=11 must be at most the 10 classes"),
        (LabelQuantity(11), "classes_per_client=11 must be at most the 10 classes"),
        (Pathological(1), "set it to at least 2"), (Shards(200), "per_client to at most 125"),
        (ClassPartition(least=6, most=5), "least=6 classes per client is above most=5"),
    ],
    ids=name,
)  # fmt: skip
def test_values_that_do_not_fit_the_data_say_what_would(method, message, dataset):
    with pytest.raises(DataError, match=message):
        method.split(dataset, 8, 0)
