"""The test helpers on quadratic clients are correct."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.work.sgd import Sgd
from fedhet.protocols import View
from fedhet.testing.quadratic import FakeView, QuadraticWorld, Rounds, Watched, equal_clients
from strategies.rules.mean import Mean
from strategies.spaces.full import Full


def test_the_models_gradient_is_the_closed_form() -> None:
    world = QuadraticWorld([2.0, 3.0], [[1.0, -1.0], [0.5, 4.0]], [10, 30])
    model = world.model()
    model.params.copy_(torch.tensor([0.25, 0.75]))
    loss = model.gradient(*next(world.shard(1, 0).batches(4)))
    assert model.grad.tolist() == [3.0 * (0.25 - 0.5), 3.0 * (0.75 - 4.0)]
    assert float(loss) == 1.5 * ((0.25 - 0.5) ** 2 + (0.75 - 4.0) ** 2)


def test_the_optimum_is_where_the_weighted_gradients_cancel() -> None:
    a, b, n = np.array([2.0, 3.0, 0.5]), np.array([[1.0, -1.0], [0.5, 4.0], [7.0, 0.0]]), np.array([10, 30, 5])
    world = QuadraticWorld(a, b, n)
    np.testing.assert_allclose((n * a) @ (world.optimum - b), 0, atol=1e-12)


def test_rounds_are_fedavg_on_a_chosen_cohort() -> None:
    a, b, n = [1.0, 4.0, 2.0], [1.0, -1.0, 0.5], [10, 20, 30]
    loop = Rounds(Sgd(lr=0.1), Full(), Mean(), QuadraticWorld(a, b, n), [1, 2, 3])
    x = 0.0
    for cohort in ([0, 1, 2], [2, 0], [1]):
        p = np.array([n[i] for i in sorted(cohort)]) / sum(n[i] for i in cohort)
        x = float(sum(w * (b[i] + (1 - 0.1 * a[i]) ** (i + 1) * (x - b[i])) for w, i in zip(p, sorted(cohort))))  # noqa: B905
        assert float(loop.run(1, cohort)["x"]) == pytest.approx(x, abs=1e-14)
        assert [u.job.client for u in loop.updates] == sorted(cohort)
    assert loop.view.version == 3
    assert [u.job.turn for u in loop.updates] == [1]


def test_steps_are_one_for_all_or_one_each() -> None:
    with pytest.raises(ValueError, match="2 numbers of steps for 3 clients"):
        Rounds(Sgd(), Full(), Mean(), QuadraticWorld([1.0] * 3, [0.0] * 3), [1, 2])


def test_a_fake_view_is_a_view_and_counts_its_streams() -> None:
    world = QuadraticWorld([1.0] * 4, [0.0] * 4, [1, 2, 3, 4])
    space = Full()
    fake = FakeView(equal_clients(world), space, space.begin(world.model()), occupied={1}, watched={2: Watched(5)})
    view: View = fake
    assert (len(view.roster), view.roster.total_examples, view.roster.examples(2)) == (4, 10, 3)
    assert (list(view.idle), view.busy) == ([0, 2, 3], 1)
    assert (view.observed(2).finished, view.observed(0).finished) == (5, 0)
    assert view.next_online() is None
    first, second = view.rng("x").random(), view.rng("x").random()
    again = FakeView(equal_clients(world), space)
    assert first != second
    assert (again.rng("x").random(), again.rng("x").random()) == (first, second)
    with pytest.raises(KeyError):
        view.base(1)
