"""The parts of gradient inversion: exact derivatives, a monotone search, the uniqueness test, the switch."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clients.models.vision import cnn_cifar, lenet, mlp, softmax
from fedhet.config import composition
from fedhet.model.flat_model import Model
from fedhet.types import Memory
from strategies.staleness.inversion_chain import Chain
from strategies.staleness.inversion_local import PLAIN, Path, Procedure, soft_cross_entropy, train, unfit
from strategies.staleness.inversion_search import Search
from strategies.staleness.inversion_store import Entry, Store
from strategies.staleness.inversion_switch import Switch
from strategies.staleness.inversion_unique import Unique, distance
from strategies.staleness.inversion_unroll import Autograd, Objective, largest

SGD = {
    "_target_": "clients.work.sgd.Sgd", "lr": 0.1, "batch": 32, "momentum": 0.0, "nesterov": False,
    "weight_decay": 0.0, "clip_norm": None, "lr_decay": 1.0,
}  # fmt: skip


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


class Three(nn.Module):
    """Logits (a x, b x + c): three parameters, smooth, float64."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.p[0] * x[:, 0].tanh(), self.p[1] * x[:, 0] + self.p[2]], 1)


def three(**kwargs: Any) -> tuple[Objective, Tensor, Tensor]:
    model = Model(Three(), soft_cross_entropy)
    path = Path(3, 0.4, (slice(0, 2), slice(2, 4)), decay=0.05, pull=0.3)
    target = torch.tensor([0.2, -0.1, 0.05], dtype=torch.float64)
    objective = Objective(Autograd(model), model.flat.clone(), target, path, **kwargs)
    return objective, points(4, 1), points(4, 2, seed=1)


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_the_unrolled_gradient_agrees_with_finite_differences(metric: str) -> None:
    objective, x, z = three(metric=metric)
    _, by_x, by_z = objective(x, z)
    step = 1e-6
    for point, gradient in ((x, by_x), (z, by_z)):
        for i in range(point.numel()):
            ends = []
            for sign in (1, -1):
                moved = point.clone()
                moved.view(-1)[i] += sign * step
                ends.append(objective(moved, z)[0] if point is x else objective(x, moved)[0])
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient.reshape(-1)[i]), rel=1e-5, abs=1e-9)


def test_the_loss_is_that_of_the_path_a_client_takes() -> None:
    objective, x, z = three()
    d = train(Model(Three(), soft_cross_entropy), objective.start, x, z.softmax(-1), objective.path)
    assert objective(x, z)[0] == pytest.approx(float((d - objective.target).abs().sum() / objective.target.abs().sum()))


MODELS = [
    (lenet, (1, 16, 16)),
    (lenet, (2, 19, 17)),
    (partial(mlp, hidden=[7, 5]), (1, 3, 4)),
    (softmax, (5,)),
    (cnn_cifar, (3, 18, 18)),
]


@pytest.mark.parametrize(("factory", "shape"), MODELS)
@pytest.mark.parametrize("piece", [2, 64])
def test_written_out_derivatives_are_those_of_automatic_differentiation(
    factory: Any, shape: tuple[int, ...], piece: int
) -> None:
    torch.manual_seed(3)
    model = Model(factory(input_shape=shape, classes=4).double(), soft_cross_entropy)
    chain = Chain.of(model.module)
    assert chain is not None
    chain.piece = piece
    compare(model, chain, points(5, *shape))


def compare(model: Model, chain: Chain, x: Tensor) -> None:
    """All derivatives of a chain against those of automatic differentiation, float64."""
    w, s, v = model.flat.clone(), points(len(x), 4).softmax(-1), points(len(model.flat), seed=2)
    ends = []
    for second in (chain, Autograd(model)):
        part = second.prepare(x)
        (g, tape), (_, again) = second.gradient(w, part, s), second.gradient(2 * w, part, s)
        none, by_shares = second.pull(again, v, deeper=False)
        by_w, also = second.pull(tape, v, deeper=True)
        assert none is None
        ends.append((g, by_w, by_shares, also, second.images(part)))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rectified", [True, False])
def test_of_equal_corners_the_first_is_the_maximum_and_a_rectifier_has_no_slope_at_zero(rectified: bool) -> None:
    torch.manual_seed(4)
    behind = [nn.MaxPool2d(2), nn.ReLU()] if rectified else [nn.MaxPool2d(2)]
    module = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), *behind, nn.Flatten(), nn.Linear(12, 4)).double()
    with torch.no_grad():
        module[0].bias[0] = 0.0
    chain = Chain.of(module)
    assert chain is not None
    x = torch.cat([torch.zeros(2, 1, 4, 4, dtype=torch.float64), points(2, 1, 4, 4)])
    x[3, 0, :2] = 0.0
    compare(Model(module, soft_cross_entropy), chain, x)


def test_a_module_with_a_stage_of_another_kind_is_no_chain() -> None:
    assert Chain.of(nn.Sequential(nn.Flatten(), nn.Linear(3, 4))) is not None
    for stage in (nn.Tanh(), nn.MaxPool2d(2), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, groups=2)):
        assert Chain.of(nn.Sequential(stage, nn.Flatten(), nn.Linear(3, 4))) is None
    first = nn.Conv2d(2, 2, 3)
    for stage in (nn.MaxPool2d(3), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(2, 2, 3), nn.Tanh()):
        assert Chain.of(nn.Sequential(first, stage, nn.ReLU(), nn.Flatten(), nn.Linear(3, 4))) is None
    strided = nn.Conv2d(2, 2, 3, stride=2)
    assert Chain.of(nn.Sequential(first, nn.ReLU(), strided, nn.Flatten(), nn.Linear(3, 4))) is None
    assert Chain.of(nn.Sequential(nn.ReLU(), nn.Linear(3, 4))) is None


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_the_mask_has_exactly_k_ones_on_the_largest_ties_by_index(values: list[int], share: float) -> None:
    target = torch.tensor(values, dtype=torch.float64)
    mask, count = largest(target, share), math.ceil(share * len(values))
    if count == len(values):
        assert mask is None
        return
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert mask is not None and {i for i in range(len(values)) if mask[i]} == set(order[:count])


def test_a_mask_of_ones_is_no_mask() -> None:
    objective, x, z = three()
    masked = three(mask=torch.ones(3, dtype=torch.float64))[0]
    (loss, *by), (same, *by_too) = objective(x, z), masked(x, z)
    assert loss == same and all(torch.equal(a, b) for a, b in zip(by, by_too, strict=True))


@pytest.mark.parametrize("search", [Search(), Search(decay=True), Search("sign", lr=0.05, box=(-2.0, 2.0))])
def test_the_least_loss_never_rises_and_a_search_from_the_solution_stays_there(search: Search) -> None:
    objective, x, z = three()
    found = search.run(objective, x, z, 60)
    assert found.loss == min(found.losses) < found.losses[0]
    assert objective(found.x, found.z)[0] == found.loss
    again = search.run(objective, found.x, found.z, 5)
    assert again.loss <= found.loss
    if search.box is not None:
        assert found.x.abs().max() <= 2.0


def test_a_search_ends_when_the_loss_will_do_or_nothing_moves() -> None:
    objective, x, z = three()
    assert len(Search(enough=1e9).run(objective, x, z, 50).losses) == 1
    assert len(Search(lr=1e-12, patience=4).run(objective, x, z, 50).losses) == 5


def test_a_search_that_never_sees_a_finite_loss_says_so() -> None:
    x, z = points(1, 1), points(1, 2)
    found = Search().run(lambda x, z: (math.nan, torch.zeros_like(x), torch.zeros_like(z)), x, z, 3)
    assert found.loss == math.inf


@given(st.integers(0, 9), st.integers(0, 100))
def test_a_late_copy_of_a_fresh_update_is_never_unique(which: int, seed: int) -> None:
    memory: Memory = {}
    peers = [points(6, seed=100 * seed + i) for i in range(10)]
    for peer in peers:
        Unique(10).remember(peer, memory)
    assert not Unique(10)(peers[which], memory)
    assert not Unique(10, quantile=0.0)(peers[which], memory)


def test_who_points_where_nobody_else_does_is_unique() -> None:
    memory: Memory = {}
    for i in range(4):
        fresh = torch.zeros(6, dtype=torch.float64)
        fresh[:3] = 1.0 + 0.1 * points(3, seed=i)
        Unique().remember(fresh, memory)
    alone = torch.zeros(6, dtype=torch.float64)
    alone[5] = 1.0
    assert Unique()(alone, memory)
    assert not Unique()(fresh * 2.0, memory)


def test_with_fewer_than_two_peers_everybody_is_unique_and_the_oldest_peer_goes_first() -> None:
    memory: Memory = {}
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    unique = Unique(peers=2)
    unique.remember(one, memory)
    assert unique(one, memory)
    for _ in range(2):
        unique.remember(two, memory)
    assert unique(one, memory) and not unique(two, memory)
    assert sum(name.startswith("peer/") for name in memory) == 2
    assert Unique(peers=0)(two, memory)


def test_the_cosine_distance_is_zero_one_and_two_where_it_should() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])
    assert (distance(a, a), distance(a, b), distance(a, -a), distance(a, 0 * a)) == (0.0, 1.0, 2.0, 1.0)


ONE, NONE = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])


def test_the_switch_is_thrown_once_by_a_majority_and_the_share_falls_to_nothing() -> None:
    switch, memory = Switch(checks=3, window=0.5), Memory()
    assert switch.judge(ONE, NONE, ONE, 10, memory) == (0.0, 2.0)
    switch.judge(NONE, ONE, ONE, 12, memory)
    assert switch.share(13, memory) == 1.0
    switch.judge(NONE, ONE, ONE, 20, memory)
    shares = [switch.share(version, memory) for version in range(20, 34)]
    assert shares[0] == 1.0 and shares[5] == 0.5 and shares[10:] == [0.0] * 4
    assert all(0.0 <= b <= a <= 1.0 for a, b in pairwise(shares))
    switch.judge(NONE, ONE, ONE, 40, memory)
    assert int(memory["switched"]) == 20


def test_a_switch_without_checks_stays_on_and_one_without_window_is_off_at_once() -> None:
    never, at_once, memory = Switch(checks=0), Switch(checks=1, window=0.0), Memory()
    never.judge(NONE, ONE, ONE, 5, memory)
    assert never.share(6, memory) == 1.0
    at_once.judge(NONE, ONE, ONE, 5, memory)
    assert at_once.share(5, memory) == 0.0


def test_the_store_forgets_who_was_longest_away() -> None:
    store, memory = Store(keep=2), Memory()
    for client in (4, 7, 4, 9):
        entry = Entry(points(1, 1, seed=client), points(1, 2), points(3))
        store.write(client, entry, memory)
    assert store.read(7, memory) is None
    kept = store.read(9, memory)
    assert store.read(4, memory) is not None and kept is not None and torch.equal(kept.x, points(1, 1, seed=9))
    assert memory["order"].tolist() == [4, 9] and len(memory) == 7


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"momentum": 0.9}, "momentum"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"_target_": "clients.work.adam.Adam"}, "Adam"),
        ({"_target_": "clients.work.scaffold.Scaffold"}, "Scaffold"),
    ],
)
def test_a_procedure_that_cannot_be_unrolled_says_why(changes: dict[str, Any], word: str) -> None:
    assert word in Procedure({**SGD, **changes}).obstacle
    assert Procedure(SGD).obstacle == ""


def test_works_that_can_be_unrolled_exist_under_their_names() -> None:
    for name in composition.options()["work"]:
        node = composition.resolved(composition.compose([f"work={name}"]))["work"]
        assert (Procedure(node).obstacle == "") == (node["_target_"] in PLAIN)
    assert len(PLAIN) == 2


def test_models_that_draw_count_or_look_up_are_unfit() -> None:
    for part in (nn.Dropout(0.1), nn.BatchNorm1d(3), nn.Embedding(3, 2)):
        assert unfit(nn.Sequential(nn.Linear(3, 3), part))
    assert unfit(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0), nn.GroupNorm(1, 3))) == ""


def test_an_epoch_has_as_many_batches_as_the_clients() -> None:
    parts = Procedure(SGD).parts(40, 100)
    assert len(parts) == 4 and parts[0] == slice(0, 10) and parts[-1] == slice(30, 40)
    assert Procedure(SGD).parts(40, 32) == (slice(0, 40),)
    assert len(Procedure(SGD).parts(3, 1000)) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Search("newton"), lambda: Search(lr=0.0), lambda: Search("sign"), lambda: Search(box=(1.0, 0.0)),
        lambda: Search(enough=-1.0), lambda: Search(patience=0), lambda: Unique(peers=1), lambda: Unique(nearest="max"),
        lambda: Unique(quantile=2.0), lambda: Switch(checks=-1), lambda: Switch(window=-0.1),
        lambda: Switch(margin=0.0), lambda: Switch(metric="l3"), lambda: Store(keep=0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must|unknown|not in|set box"):
        make()
